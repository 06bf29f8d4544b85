"""The words of a text that are scored: what a recipe leaves out of its error rate."""

from __future__ import annotations

import subprocess
from pathlib import Path


def scored_words(
    texts: dict[str, str],
    cleaner: str | None = None,
    symbols: frozenset[str] = frozenset(),
    program: str | None = None,
) -> dict[str, str]:
    """Clean each text, drop the words that are ``symbols``, pass all through a program.

    In asr.sh's order: ``--cleaner``, then the symbols of ``--nlsyms_txt``;
    after them Kaldi's ``local/wer_output_filter``.

    Args:
        texts: utterance id -> text.
        cleaner: a text cleaner of ESPnet, or None.
        symbols: words that are no speech, e.g. "<NOISE>".
        program: reads Kaldi ``text`` lines and writes them, the id first.

    Raises:
        ValueError: the program failed, or lost or changed an id.
    """
    if cleaner:
        from espnet2.text.cleaner import TextCleaner

        clean = TextCleaner(cleaner)
        texts = {key: clean(text) for key, text in texts.items()}
    texts = {
        key: " ".join(word for word in text.split() if word not in symbols)
        for key, text in texts.items()
    }
    return _through(program, texts) if program else texts


def read_symbols(path: str | Path) -> frozenset[str]:
    """The symbols of an ``--nlsyms_txt`` file, one a line."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return frozenset(line.rstrip() for line in lines) - {""}


def kaldi_lines(texts: dict[str, str]) -> str:
    """The lines of a Kaldi ``text`` file; an id alone where there is no word."""
    return "".join(f"{key} {text}".rstrip() + "\n" for key, text in texts.items())


def _through(program: str, texts: dict[str, str]) -> dict[str, str]:
    done = subprocess.run(
        [program], input=kaldi_lines(texts), stdout=subprocess.PIPE, encoding="utf-8"
    )
    if done.returncode:
        raise ValueError(f"{program} failed: exit code {done.returncode}")
    lines = [line.split() for line in done.stdout.splitlines()]
    if [line[0] if line else "" for line in lines] != list(texts):
        raise ValueError(
            f"{program}: its lines do not begin with the ids that it was given, in "
            "their order; it must keep the first word of every line"
        )
    return {key: " ".join(words) for key, *words in lines}
