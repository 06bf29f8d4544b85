#!/usr/bin/env python3
"""Make ESPnet's token list (and word piece model) from the text of a data set."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.files import folder_beside, move_files


def sentences(text: Path) -> list[str]:
    """The transcripts of a Kaldi `text` file."""
    lines = text.read_text(encoding="utf-8").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if len(line.split()) > 1]


def train_word_pieces(
    text: Path, folder: Path, nbpe: int, bpemode: str, symbols: list[str]
) -> None:
    """Write bpe.model and bpe.vocab of `nbpe` pieces.

    Raises:
        ValueError: the text is too small for that many pieces.
    """
    import sentencepiece

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences(text)),
            model_prefix=str(folder / "bpe"),
            vocab_size=nbpe,
            model_type=bpemode,
            character_coverage=1.0,
            user_defined_symbols=symbols,
            minloglevel=1,
        )
    except RuntimeError as error:
        raise ValueError(
            f"{text}: nbpe {nbpe} does not fit this text: {error}"
        ) from error


def pieces(vocab: Path) -> list[str]:
    """The pieces of a bpe.vocab, without SentencePiece's own <unk>, <s> and </s>."""
    lines = vocab.read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[0] for line in lines][3:]


def units(
    text: Path, folder: Path, token_type: str, symbols: str, cleaner: str
) -> list[str]:
    """The characters or words of a text, split by ESPnet, by decreasing count."""
    from espnet2.bin.tokenize_text import main as tokenize_text

    output = folder / "units"
    options = dict(
        token_type=token_type,
        input=text,
        field="2-",
        output=output,
        non_linguistic_symbols=symbols,
        cleaner=cleaner,
        g2p="none",
        write_vocabulary="true",
    )
    tokenize_text([f"--{name}={value}" for name, value in options.items()])
    return output.read_text(encoding="utf-8").splitlines()


def run(args: argparse.Namespace) -> None:
    """tokens.txt: <blank>, <unk>, the pieces, characters or words, <sos/eos>."""
    text, output = Path(args.text), Path(args.output_dir)
    if not sentences(text):
        raise ValueError(
            f"{text}: has no transcripts to make tokens from; give the text of a "
            "labelled set, with lines `<utterance> <words>`"
        )
    with folder_beside(output / "tokens.txt") as folder:
        if args.token_type == "bpe":
            symbols = []
            if args.nlsyms_txt != "none":
                symbols = Path(args.nlsyms_txt).read_text(encoding="utf-8").split()
            train_word_pieces(text, folder, args.nbpe, args.bpemode, symbols)
            tokens = pieces(folder / "bpe.vocab")
        else:
            tokens = units(text, folder, args.token_type, args.nlsyms_txt, args.cleaner)
            (folder / "units").unlink()
        lines = ["<blank>", "<unk>", *tokens, "<sos/eos>"]
        (folder / "tokens.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        move_files(folder, output, sorted(path.name for path in folder.iterdir()))


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = new_parser("token_list", __doc__)
    parser.add_argument("--text", required=True, help="Kaldi text file")
    parser.add_argument(
        "--output_dir", required=True, help="folder to write tokens.txt to"
    )
    parser.add_argument("--token_type", default="bpe", choices=["bpe", "char", "word"])
    parser.add_argument("--nbpe", type=int, default=30, help="Word pieces")
    parser.add_argument("--bpemode", default="unigram", choices=["unigram", "bpe"])
    parser.add_argument("--nlsyms_txt", default="none", help="Non-linguistic symbols")
    parser.add_argument("--cleaner", default="none", help="Text cleaner")
    return parser


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
