"""Shape files for ESPnet training, as written by its collect_stats for raw audio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from espnet_kd.data.kaldi import write_table


@dataclass(frozen=True)
class Tokenization:
    """How ESPnet turns words into token ids; fields are named as options of asr.sh."""

    token_type: str
    token_list: str
    bpemodel: str | None = None
    cleaner: str | None = None
    g2p: str | None = None
    non_linguistic_symbols: str | None = None


def write_shapes(
    shape_dir: str | Path,
    num_samples: Mapping[str, int],
    texts: Mapping[str, str],
    tokenization: Tokenization,
) -> list[Path]:
    """Write `speech_shape` and `text_shape.<token_type>`; no audio is opened.

    speech_shape: "<utterance> <samples>"; text_shape: "<utterance> <tokens>,<V>" with
    V the size of the token list, needed by ESPnet's `numel` batches.

    Raises:
        FileNotFoundError: the token list or the BPE model is missing.
    """
    from espnet2.text.build_tokenizer import build_tokenizer
    from espnet2.text.cleaner import TextCleaner
    from espnet2.text.token_id_converter import TokenIDConverter

    for name in ("token_list", "bpemodel", "non_linguistic_symbols"):
        path = getattr(tokenization, name)
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"{name}={path}: no such file")
    tokenizer = build_tokenizer(
        token_type=tokenization.token_type,
        bpemodel=tokenization.bpemodel,
        non_linguistic_symbols=tokenization.non_linguistic_symbols,
        g2p_type=tokenization.g2p,
    )
    cleaner = TextCleaner(tokenization.cleaner)
    converter = TokenIDConverter(token_list=tokenization.token_list)
    size = converter.get_num_vocabulary_size()

    def tokens(text: str) -> int:
        return len(converter.tokens2ids(tokenizer.text2tokens(cleaner(text))))

    shape_dir = Path(shape_dir)
    shape_dir.mkdir(parents=True, exist_ok=True)
    speech_shape, text_shape = shape_files(shape_dir, tokenization)
    write_table(speech_shape, ((key, str(value)) for key, value in num_samples.items()))
    write_table(
        text_shape, ((key, f"{tokens(text)},{size}") for key, text in texts.items())
    )
    return [speech_shape, text_shape]


def shape_files(shape_dir: str | Path, tokenization: Tokenization) -> tuple[Path, Path]:
    """The paths that `write_shapes` writes: speech shapes, text shapes."""
    folder = Path(shape_dir)
    return folder / "speech_shape", folder / f"text_shape.{tokenization.token_type}"
