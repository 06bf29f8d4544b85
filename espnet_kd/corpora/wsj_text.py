r"""WSJ's transcripts, and their text as in ESPnet's and Kaldi's recipes.

A session (one sitting of a speaker) has a file of each kind, one utterance per line:

    <session>00.dot   [loud_breath] That\'s <the> I\. B\. M\. (4k0c0301)   what was said
    <session>00.lsn   THAT'S THE I. B. M. (4k0c0301)                     its words
    <session>00.ptx   That\'s the I\. B\. M\. (4k0c0301 87.051.870113)   the prompt

The conventions of .dot are described in csr-dot-spec.doc, distributed with LDC93S6C:

    \.              escape of a character that belongs to a word
    \,COMMA         punctuation that was spoken (WSJ0)
    [door_slam]     noise; [<x] and [x>] over the word before and after, [x/] to [/x]
                    over the words between
    <word>          left out or swallowed by the speaker
    *word*          mispronounced
    !word, w:ord    emphasised, lengthened
    .  and  ~       pause, waveform cut off
"""

from __future__ import annotations

import re
from pathlib import Path

NOISE = "<NOISE>"
# Spellings of Nov'93 made equal to the other sets, the dash to the CMU dictionary.
SPELLINGS = {"%PERCENT": "PERCENT", ".POINT": "POINT", "--DASH": "-DASH"}
# A noise over a word, the ends of a range, a cut and a pause are not words.
NO_WORD = re.compile(r"\[<\w+\]|\[\w+>\]|.*\[\w+/\]|.*\[/\w+\]|~|\.", re.ASCII)
SINGLE_NOISE = re.compile(r"\[\w+\]", re.ASCII)
SWALLOWED = re.compile(r"<([\w']+)>", re.ASCII)
# In .ptx the id is followed by the position in the newspaper.
LINE = re.compile(r"(?P<text>.*)\(\s*(?P<id>\w{8})(\s[^()]*)?\)\s*", re.ASCII)


def read_transcripts(path: Path) -> dict[str, str]:
    """Read the transcripts of a session's .dot, .lsn or .ptx file.

    Returns:
        utterance id (lower case) -> text as written.

    Raises:
        ValueError: at a line that does not end in an utterance's id.
    """
    transcripts = {}
    # Latin 1 decodes any byte.
    lines = path.read_text(encoding="latin-1").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{path}: line {number} does not end in '(<utterance id>)': {line!r}. "
                "Copy the file again from the distribution."
            )
        transcripts[match["id"].lower()] = match["text"].strip()
    return transcripts


def normalize(text: str) -> str:
    """The upper-case text of a transcript, equal to Kaldi's (and ESPnet's) for WSJ.

    Escapes and everything that is not a word are removed, a separate noise becomes
    `<NOISE>`, a swallowed word is kept. Everything else stays as written, as it does
    there: spoken punctuation and the marks of *mispronounced*, !emphasised and
    lengthened words are characters to be learnt.
    """
    words = map(_word, text.replace("\\", "").upper().split())
    return " ".join(word for word in words if word)


def _word(token: str) -> str:
    """The word of an upper-case token without escapes; empty if it is not a word."""
    token = SPELLINGS.get(token, token)
    if NO_WORD.fullmatch(token):
        return ""
    if SINGLE_NOISE.search(token):
        return NOISE
    swallowed = SWALLOWED.fullmatch(token)
    return swallowed[1] if swallowed else token


def non_linguistic(texts: list[str]) -> list[str]:
    """The words with `<` in normalised texts, sorted; they are not scored.

    `<NOISE>`, and in WSJ some marks that `normalize` leaves (`<*IN*>`); each becomes
    one token.
    """
    return sorted({word for text in texts for word in text.split() if "<" in word})
