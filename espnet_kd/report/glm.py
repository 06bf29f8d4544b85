"""Global mapping files (.glm) of NIST: spellings that count as the same words.

    ;; a comment; the first word of the file is the comment mark
    * case_sensitive = 'F'
    OKAY => O. K. / [ ] __ [ ]                  between blanks
    [HE'S] => [{HE IS / HE HAS}] / [ ] __ [ ]   alternatives; [] or "" keep blanks
    FALKNER => FAULKNER / [WILLIAM ] __
    ;; INPUT_DEPENDENT_APPLICATION = "ctm"      the rules from here on: hypotheses only

At each character of a line the first rule whose left side matches, in its context, is
applied, and reading continues after it; contexts refer to the original line.
Rules: GLMRules.txt of NIST's SCTK. Otherwise the line is treated as by `csrfilt.sh -dh`
for English: upper case, blanks around parentheses, hyphens within words become blanks,
parentheses around several words become parentheses around each.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PURPOSE = re.compile(r';;\s+INPUT_DEPENDENT_APPLICATION\s*=\s*"([^"]*)"')
OPTION = re.compile(r"""\*.*?\b(\w+)\b\s*[=:]?\s*["']([^"']*)["']""")
# Formats of texts: references are stm, hypotheses ctm.
KINDS = {"ref": ("stm", "ref"), "hyp": ("ctm", "hyp")}


class Rule(NamedTuple):
    """`source` becomes `target` between `left` and `right`."""

    source: str
    target: str
    left: str = ""
    right: str = ""


class GlobalMap:
    """The rules of a .glm file for references or for hypotheses."""

    def __init__(self, rules: list[Rule], case_sensitive: bool = True):
        self._fold: Callable[[str], str] = str if case_sensitive else str.upper
        self._rules: dict[str, list[Rule]] = defaultdict(list)
        for rule in rules:
            folded = rule._replace(
                source=self._fold(rule.source),
                left=self._fold(rule.left),
                right=self._fold(rule.right),
            )
            self._rules[folded.source[:1]].append(folded)

    def rewrite(self, line: str) -> str:
        """Apply the rules to a line, without other changes."""
        folded = self._fold(line)
        written = []
        place = 0
        while place < len(line):
            for rule in self._rules.get(folded[place], ()):
                end = place + len(rule.source)
                if (
                    folded.startswith(rule.source, place)
                    and folded[:place].endswith(rule.left)
                    and folded.startswith(rule.right, end)
                ):
                    written.append(rule.target)
                    place = end
                    break
            else:
                written.append(line[place])
                place += 1
        return "".join(written)

    def __call__(self, text: str) -> str:
        """The words of a text as compared by NIST: rules, upper case, no hyphens."""
        text = re.sub(r"([()])", r" \1 ", f" {text.upper()} ")
        text = self.rewrite(re.sub(r"\s+", " ", text))
        text = re.sub(r"([^( ])-(?=[^) ])", r"\1 ", text)  # leaves ab- and -ab
        return " ".join(re.sub(r"\(([^()]*)\)", _each_optional, text).split())


def _each_optional(words: re.Match) -> str:
    """`(a b)` as `(a) (b)`."""
    return " ".join(f"({word})" for word in words[1].split())


def read_glm(path: Path, kind: str) -> GlobalMap:
    """Read the rules of a file that apply to a "ref" or a "hyp".

    Raises:
        ValueError: at a line that is not a rule, or if the file has no rules.
    """
    # Latin 1 decodes any byte.
    lines = path.read_text(encoding="latin-1").splitlines()
    comment = lines[0].split()[0] if lines and lines[0].split() else ";;"
    rules: list[Rule] = []
    case_sensitive, applies = True, True
    for number, line in enumerate(lines[1:], 2):
        purpose = PURPOSE.match(line)
        if purpose:
            wanted = purpose[1].lower()
            applies = any(re.search(wanted, name) for name in KINDS[kind])
        line = line.partition(comment)[0].rstrip()
        if line.startswith("*"):
            option = OPTION.match(line)
            if option and option[1].upper() == "CASE_SENSITIVE":
                case_sensitive = option[2][:1].upper() in "TY"
        elif line.strip() and applies:
            rules.append(_rule(line, f"{path}: line {number}"))
    if not rules:
        raise ValueError(f"{path}: no rules found; must be a .glm file")
    return GlobalMap(rules, case_sensitive)


def _rule(line: str, where: str) -> Rule:
    source, arrow, rest = line.partition("=>")
    if not arrow or not _bare(source):
        raise ValueError(f"{where} is not 'A => B' or 'A => B / C __ D': {line!r}")
    # The last slash begins a context, unless it separates alternatives.
    target, slash, context = rest.rpartition("/")
    left, slot, right = context.partition("_")
    if not slash or not slot or "]" in context.partition("[")[0]:
        return Rule(_bare(source), _bare(rest))
    right = re.sub(r"^\S*", "", right)  # the slot is a word that begins with _
    return Rule(_bare(source), _bare(target), _bare(left), _bare(right))


def _bare(part: str) -> str:
    """A part of a rule without its enclosing marks, which protect blanks."""
    part = part.strip()
    if len(part) > 1 and part[0] + part[-1] in ("[]", '""'):
        return part[1:-1]
    return part
