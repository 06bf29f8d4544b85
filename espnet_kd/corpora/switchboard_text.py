r"""The text of telephone transcripts as in Kaldi's and ESPnet's recipes, except for a
few words that Kaldi's patterns mangle.

Mississippi State's transcripts of Switchboard contain, besides plain words,

    [laughter] [noise] [vocalized-noise]     noises, kept as words
    [silence]  <b_aside> <e_aside>           dropped
    [laughter-story]                         said while laughing        story
    [it'n/isn't]                             said / meant               it'n
    ab[solute]-  -[a]bout  ammu[n]ition-     broken off or swallowed    ab-  -bout
    {yuppiedom}                              coined                     yuppiedom
    them_1                                   a pronunciation            them
    IBM  IBM's  CDs                          acronyms                   i b m  i b m's

Fisher's contain `[laugh]`, `((unclear))`, `i._b._m.`; both are normalised alike, in
lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from espnet_kd.corpora.telephone import utterance_id

NOISES = ("[laughter]", "[noise]", "[vocalized-noise]")
DROPPED = ("[silence]", "<b_aside>", "<e_aside>")
# Fisher distinguishes more noises; mapped as in Kaldi's recipe.
FISHER_NOISES = {
    "[laugh]": "[laughter]",
    "[sigh]": "[noise]",
    "[cough]": "[noise]",
    "[mn]": "[noise]",
    "[breath]": "[noise]",
    "[lipsmack]": "[noise]",
}
# Names of the letters in Mississippi State's dictionary.
LETTERS = {
    **dict(A="ey", B="b iy", C="s iy", D="d iy", E="iy", F="eh f", G="jh iy"),
    **dict(H="ey ch", I="ay", J="jh ey", K="k ey", L="eh l", M="eh m", N="eh n"),
    **dict(O="ow", P="p iy", Q="k y uw", R="aa r", S="eh s", T="t iy", U="y uw"),
    **dict(V="v iy", W="d ah b ax l y uw", X="eh k s", Y="w ay", Z="z iy"),
}
DICTIONARY = "sw-ms98-dict.text"

LAUGHED = re.compile(r"(-?)\[laughter-(.+)\](-?)", re.IGNORECASE)
SAID_MEANT = re.compile(r"\[?(.+)/.+\](-?)")  # one lacks its opening bracket
SWALLOWED = re.compile(r"\[[^][]+\]")
ACRONYM = re.compile(r"([A-Za-z]{2,}?)('?s)?")
FISHER_LINE = re.compile(r"([\d.]+)\s+([\d.]+)\s+([AB]):\s*(.*\S)\s*")


def read_acronyms(dictionary: Path) -> dict[str, str]:
    """The words of Mississippi State's dictionary that are pronounced letter by letter.

    Args:
        dictionary: `sw-ms98-dict.text`, lines `<word> <phone> ...`; `#` begins a
            comment.

    Returns:
        word as written -> its letters, e.g. IBM -> "i b m". The plural and the
        possessive are both "i b m's", as in the test sets.
    """
    acronyms = {}
    for line in dictionary.read_text(encoding="latin-1").splitlines():
        word, _, phones = line.strip().partition(" ")
        match = ACRONYM.fullmatch(word)
        if match is None:
            continue
        # "ADS" may be an acronym itself or the plural of one.
        for letters, ending in {(word, ""), (match[1], match[2] or "")}:
            said = " ".join(LETTERS.get(letter, "?") for letter in letters.upper())
            wanted = [f"{said} s", f"{said} z"] if ending else [said]
            if " ".join(phones.split()) in wanted:
                acronyms[word] = " ".join(letters.lower()) + ("'s" if ending else "")
    return acronyms


def normalize(text: str, acronyms: dict[str, str]) -> str:
    """The lower-case words of a transcript of Mississippi State; may be empty."""
    words = (_word(token) for token in text.split() if token.lower() not in DROPPED)
    return " ".join(acronyms.get(word, word) for word in words if word).lower()


def _word(token: str) -> str:
    """The spoken form of a token, in its own case."""
    for name in DROPPED:  # sometimes without a space: <b_aside>yeah
        token = re.sub(re.escape(name), "", token, flags=re.IGNORECASE)
    if token.lower() in NOISES:
        return token
    laughed = LAUGHED.fullmatch(token)
    if laughed:
        token = laughed[1] + laughed[2] + laughed[3]
    said = SAID_MEANT.fullmatch(token)
    if said:
        token = said[1] + said[2]
    if "[" in token:
        # ab[solute]-: the swallowed part becomes one hyphen, written or not.
        token = re.sub("-+", "-", SWALLOWED.sub("-", token))
    if token.startswith("{") and token.endswith("}"):
        token = token[1:-1]
    return re.sub(r"_\d", "", token)  # them_1's too


def fisher_text(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (utterance id, text) of a transcript file of Fisher (fe_03_00001.txt).

    Lines are `<begin s> <end s> A: <words>`. Utterances with words that are marked as
    unclear, `((like these))`, are left out.
    """
    for line in path.read_text(encoding="utf-8").splitlines():
        match = FISHER_LINE.fullmatch(line)
        if match is None or "((" in line:
            continue
        begin, end, side, text = match.groups()
        words = (FISHER_NOISES.get(word, word) for word in text.lower().split())
        plain = " ".join(words).replace("._", " ").replace(".", "")
        yield utterance_id(f"{path.stem}-{side}", begin, end), plain
