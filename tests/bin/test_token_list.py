"""Token lists in the order of asr.sh, and their models."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from espnet2.bin.tokenize_text import main as tokenize_text

from espnet_kd.bin import token_list

LINES = ["u1 anna and <noise> hannah", "u2 an end", "u3", "u4 a hand and a hat"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / "text").write_text("".join(f"{line}\n" for line in LINES))
    (folder / "nlsyms").write_text("<noise>\n")
    return folder / "text"


def make(text: Path, **options) -> list[str]:
    output = text.parent / "tokens"
    options = dict(text=text, output_dir=output, **options)
    token_list.main([part for k, v in options.items() for part in (f"--{k}", str(v))])
    return (output / "tokens.txt").read_text().splitlines()


@pytest.mark.parametrize("with_symbols", [False, True])
@pytest.mark.parametrize("token_type, first", [("char", "a"), ("word", "and")])
def test_units_equal_those_of_asr_sh(
    text: Path, tmp_path: Path, token_type: str, first: str, with_symbols: bool
):
    symbols = text.parent / "nlsyms" if with_symbols else "none"
    expected = tmp_path / "expected"
    asr_sh = f"--token_type {token_type} --field 2- --cleaner none --g2p none".split()
    asr_sh += ["--input", str(text), "--output", str(expected)]
    asr_sh += ["--write_vocabulary", "true", "--non_linguistic_symbols", str(symbols)]
    for symbol in ("<blank>:0", "<unk>:1", "<sos/eos>:-1"):
        asr_sh += ["--add_symbol", symbol]
    tokenize_text(asr_sh)
    tokens = make(text, token_type=token_type, nlsyms_txt=symbols)
    assert tokens == expected.read_text().splitlines()
    assert tokens[:3] == ["<blank>", "<unk>", first] and tokens[-1] == "<sos/eos>"
    assert ("<noise>" in tokens) == (with_symbols or token_type == "word")


@pytest.mark.parametrize("bpemode", ["bpe", "unigram"])
def test_word_pieces(text: Path, bpemode: str):
    tokens = make(text, token_type="bpe", nbpe=16, bpemode=bpemode)
    folder = text.parent / "tokens"
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    pieces = [model.id_to_piece(n) for n in range(model.get_piece_size())]
    assert pieces[:3] == ["<unk>", "<s>", "</s>"] and len(pieces) == 16
    assert tokens == ["<blank>", "<unk>", *pieces[3:], "<sos/eos>"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "bpe.model",
        "bpe.vocab",
        "tokens.txt",
    ]
    assert set(model.encode("a hand", out_type=str)) <= set(tokens)
    assert "u" not in "".join(pieces[3:])  # utterance ids are not text


def test_symbols_are_not_split(text: Path):
    tokens = make(text, nbpe=20, bpemode="bpe", nlsyms_txt=text.parent / "nlsyms")
    assert tokens.count("<noise>") == 1
    folder = text.parent / "tokens"
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    assert "<noise>" in model.encode("and <noise> hannah", out_type=str)


def test_too_many_pieces_are_refused(text: Path):
    with pytest.raises(SystemExit, match="token_list: .*text: nbpe 500 does not fit"):
        make(text, nbpe=500)
    assert not (text.parent / "tokens" / "tokens.txt").exists()
    assert not list((text.parent / "tokens").iterdir())


@pytest.mark.parametrize("token_type", ["char", "word", "bpe"])
def test_a_text_without_transcripts_is_refused(text: Path, token_type: str):
    text.write_text("u1\nu2\n")
    with pytest.raises(SystemExit, match="text: has no transcripts .*labelled set"):
        make(text, token_type=token_type)


def test_a_missing_text(tmp_path: Path):
    with pytest.raises(SystemExit, match="token_list: .*No such file.*missing"):
        make(tmp_path / "missing")
