"""The rules of .glm files, by NIST's GLMRules.txt, and as applied by csrfilt.sh."""

import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from espnet_kd.report.glm import read_glm
from espnet_kd.report.sclite import SCTK_FOLDER
from tests.corpora.swbd_tree import GLM

SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), SCTK_FOLDER])
CSRFILT = shutil.which("csrfilt.sh", path=SEARCHED)
HEADER = ";; rules\n* case_sensitive = 'F'\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rules.glm"
    path.write_text(text, encoding="latin-1")
    return path


def rewrite(tmp_path: Path, rules: str, line: str, header: str = HEADER) -> str:
    return read_glm(written(tmp_path, header + rules), "ref").rewrite(line)


class TestRules:
    """The examples of GLMRules.txt and their stated results."""

    @pytest.mark.parametrize(
        "rule, line, result",
        [
            ("CANCELLED => CANCELED ;; per AHD", "uncancelled", "unCANCELED"),
            ("[  ] => [ ]", "a  b   c", "a b  c"),
            (
                "Falkner => Faulkner / [William ] __",
                "william falkner",
                "william Faulkner",
            ),
            ("Falkner => Faulkner / [William ] __", "w falkner", "w falkner"),
            ("JETLINER => JET LINER", "JETLINERS", "JET LINERS"),
            ("VIDEO => V / [ ] __ [ ]", " video videos video ", " V videos V "),
            (
                "[CAN'T] => [{CAN NOT / CANNOT}] / [ ] __ [ ]",
                " can't ",
                " {CAN NOT / CANNOT} ",
            ),
            ('"A B" => "C D" / " " __', " a b", " C D"),
            ("A => B / __ [ C]", "a a c", "a B c"),
            ("UH =>", "uhu", "u"),
            ("[{A / B}] => C", "{a / b}", "C"),
        ],
    )
    def test_examples(self, tmp_path, rule, line, result):
        assert rewrite(tmp_path, rule, line) == result

    def test_first_rule_that_fits(self, tmp_path):
        assert rewrite(tmp_path, "AB => 1\nA => 2\nABC => 3\n", "abc a") == "1c 2"

    def test_contexts_refer_to_the_original_line(self, tmp_path):
        """A rule's output is not a context, and is not read again."""
        assert rewrite(tmp_path, "A => B\nB => C / [A] __\n", "ab") == "BC"

    def test_case(self, tmp_path):
        assert rewrite(tmp_path, "a => b", "aA", ";;\n") == "bA"
        assert rewrite(tmp_path, "a => b", "aA", HEADER) == "bb"

    def test_comments(self, tmp_path):
        """The first word of the file begins them."""
        text = "# rules\n# A => B\nC => D # E => F\n"
        assert read_glm(written(tmp_path, text), "ref").rewrite("ACE") == "ADE"

    def test_rules_of_hypotheses(self, tmp_path):
        text = HEADER + "A => 1\n" + ';; INPUT_DEPENDENT_APPLICATION = "ctm"\nB => 2\n'
        path = written(tmp_path, text)
        assert read_glm(path, "ref").rewrite("ab") == "1b"
        assert read_glm(path, "hyp").rewrite("ab") == "12"

    @pytest.mark.parametrize(
        "text, message",
        [(HEADER + "A = B\n", "line 3 is not 'A => B"), (HEADER, "no rules found")],
    )
    def test_damage(self, tmp_path, text, message):
        with pytest.raises(ValueError, match=message):
            read_glm(written(tmp_path, text), "ref")


class TestWords:
    """The steps of hub5 scoring around the rules (csrfilt.sh -dh)."""

    @pytest.mark.parametrize(
        "text, result",
        [
            ("a well-known dog", "A WELL KNOWN DOG"),
            ("fra- -ment (fra-) (a-b)", "FRA- -MENT (FRA-) (A) (B)"),
            ("(a b) c", "(A) (B) C"),
            ("uh-huh okay", "%BCACK O. K."),
            ("(uh) gonnas", "(%HESITATION) GOING TOS"),
            ("he's ok", "HE'S O. K."),
            ("", ""),
        ],
    )
    def test_reference(self, tmp_path, text, result):
        assert read_glm(written(tmp_path, GLM), "ref")(text) == result

    def test_hypothesis(self, tmp_path):
        rules = read_glm(written(tmp_path, GLM), "hyp")
        assert rules("he's ok") == "{HE IS / HE HAS} O. K."


@pytest.mark.skipif(CSRFILT is None, reason="csrfilt.sh (SCTK) is not installed")
def test_csrfilt_gives_the_same(tmp_path):
    rng = random.Random(3)
    words = [w for w in re.findall(r"[A-Z.'-]+", GLM) if w != "--"]
    words += ["(uh)", "(%hesitation)", "fra-", "-ment", "{ a / x-y }", "well-known"]
    lines = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(300)]
    done = subprocess.run(
        [CSRFILT, "-i", "stm", "-t", "ref", "-dh", str(written(tmp_path, GLM))],
        input="".join(
            f"c A s {n} {n + 1} <O> {line}\n" for n, line in enumerate(lines)
        ),
        env={**os.environ, "PATH": SEARCHED},
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = [line.split("<O>")[1].split() for line in done.stdout.splitlines()]
    rules = read_glm(tmp_path / "rules.glm", "ref")
    assert [rules(line).split() for line in lines] == theirs
