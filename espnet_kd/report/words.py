"""The scored words of a text, without those that a recipe excludes."""

from __future__ import annotations

import subprocess
from pathlib import Path


def scored_words(
    texts: dict[str, str],
    cleaner: str | None = None,
    symbols: frozenset[str] = frozenset(),
    program: str | None = None,
) -> dict[str, str]:
    """Clean each text, drop the words in ``symbols``, filter all by a program.

    In asr.sh's order: ``--cleaner``, then the symbols of ``--nlsyms_txt``;
    after them Kaldi's ``local/wer_output_filter``.

    Args:
        texts: utterance id -> text.
        cleaner: a text cleaner of ESPnet, or None.
        symbols: words that are not speech, e.g. "<NOISE>".
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
    """The symbols of an ``--nlsyms_txt`` file, one per line."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return frozenset(line.rstrip() for line in lines) - {""}


def kaldi_lines(texts: dict[str, str]) -> str:
    """The lines of a Kaldi ``text`` file; only an id for an empty text."""
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
            f"{program}: its lines do not begin with the given ids, in order; it must "
            "keep the first word of every line"
        )
    return {key: " ".join(words) for key, *words in lines}
