"""Words that are excluded from the error rate."""

from pathlib import Path

import pytest

from espnet_kd.bin.scored_text import main
from espnet_kd.report.words import read_symbols, scored_words


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_symbols_are_whole_words(tmp_path: Path):
    (tmp_path / "symbols").write_text("<NOISE>\n[UH] \n\n")
    symbols = read_symbols(tmp_path / "symbols")
    assert symbols == {"<NOISE>", "[UH]"}
    texts = {"a": "<NOISE> one [UH] <NOISE>s", "b": "[UH]"}
    assert scored_words(texts, symbols=symbols) == {"a": "one <NOISE>s", "b": ""}


def test_cleaning_comes_first():
    """ESPnet's cleaner "tacotron" writes capitals and numbers as capital words."""
    pytest.importorskip("tacotron_cleaner")
    scored = scored_words({"a": "mr. x uh 2"}, "tacotron", frozenset({"UH"}))
    assert scored == {"a": "MISTER X TWO"}


def test_a_program_sees_kaldi_lines(tmp_path: Path):
    upper = program(tmp_path / "filter", "sed 's/ uh\\b//g'")
    texts = {"a-uh": "uh one uh", "b": "", "c": "uh"}
    scored = scored_words(texts, program=upper)
    assert scored == {"a-uh": "one", "b": "", "c": ""}


@pytest.mark.parametrize(
    "text, message",
    [
        ("cut -d ' ' -f 2-", "do not begin with the given ids"),
        ("tac", "do not begin with the given ids"),
        ("cat; exit 3", "failed: exit code 3"),
    ],
)
def test_a_program_that_loses_ids(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        scored_words({"a": "x", "b": "y"}, program=program(tmp_path / "f", text))


def test_command(tmp_path: Path):
    (tmp_path / "text").write_text("b  two <x>\na <x>\n")
    (tmp_path / "symbols").write_text("<x>\n")
    files = ("--text", str(tmp_path / "text"), "--output", str(tmp_path / "out/text"))
    main([*files, "--nlsyms_txt", str(tmp_path / "symbols")])
    assert (tmp_path / "out/text").read_text() == "b two\na\n"
    with pytest.raises(SystemExit, match="scored_text: .*gone"):
        main([*files, "--nlsyms_txt", str(tmp_path / "gone")])
