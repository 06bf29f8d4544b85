#!/usr/bin/env python3
"""Where transducers emit, and whether they believe in repeated words.

For each experiment folder: over the first utterances of a set in which a word follows
itself, how often log P(reference) exceeds log P(reference without the repetition); then
the frame at which the best path of one utterance emits each token.

    local/emission_frames.py exp/asr_a exp/asr_b
"""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile
import torch
from espnet2.text.build_tokenizer import build_tokenizer

from espnet_kd.data.kaldi import read_table
from espnet_kd.lattice import best_path, total_score
from espnet_kd.models.branches import encode
from espnet_kd.models.config import read_config
from espnet_kd.models.joint import joint_logits
from espnet_kd.models.loading import load_model


class Scorer:
    """log P(words | audio) of a trained transducer, and its best path."""

    def __init__(self, folder: Path, model_file: str) -> None:
        config = read_config(folder / "config.yaml")
        self.model = load_model(folder / "config.yaml", folder / model_file)
        self.tokenizer = build_tokenizer(config["token_type"], config["bpemodel"])
        self.ids = {token: i for i, token in enumerate(self.model.token_list)}

    def lattice(self, wav: str, words: list[str]) -> tuple[torch.Tensor, ...]:
        """Logits (1, T, U+1, V), labels (1, U) and the lengths (1,) of both."""
        audio = torch.tensor(soundfile.read(wav, dtype="float32")[0])[None]
        encoder_out, frames = encode(self.model, audio, torch.tensor([audio.size(1)]))
        tokens = self.tokenizer.text2tokens(" ".join(words))
        labels = torch.tensor([[self.ids[token] for token in tokens]])
        lengths = torch.tensor([labels.size(1)])
        logits = joint_logits(self.model, encoder_out, labels, lengths)
        return logits, labels, frames, lengths

    def log_prob(self, wav: str, words: list[str]) -> float:
        logits, labels, frames, lengths = self.lattice(wav, words)
        return total_score(logits, labels, frames, lengths).item()

    def emissions(self, wav: str, words: list[str]) -> str:
        logits, labels, frames, lengths = self.lattice(wav, words)
        path = best_path(logits, labels, frames, lengths)[0][0]
        emits = path[1:, 1] > path[:-1, 1]
        tokens = [self.model.token_list[label] for label in labels[0]]
        at = path[:-1, 0][emits].tolist()
        return " ".join(f"{token}@{frame}" for token, frame in zip(tokens, at))


def without_repetition(words: list[str]) -> list[str]:
    """Each run of equal words as one word."""
    return [word for i, word in enumerate(words) if i == 0 or word != words[i - 1]]


def main() -> None:
    """Parse, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="experiment folders")
    parser.add_argument("--data_dir", type=Path, default=Path("dump/raw/test"))
    parser.add_argument("--model_file", default="valid.loss.ave.pth")
    parser.add_argument("--utterances", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    wavs = dict(read_table(args.data_dir / "wav.scp"))
    texts = {u: text.split() for u, text in read_table(args.data_dir / "text")}
    repeated = [u for u, words in texts.items() if without_repetition(words) != words]
    repeated = repeated[: args.utterances]
    for folder in args.folders:
        scorer = Scorer(folder, args.model_file)
        wins = sum(
            scorer.log_prob(wavs[u], texts[u])
            > scorer.log_prob(wavs[u], without_repetition(texts[u]))
            for u in repeated
        )
        print(f"{folder}: repetition believed in {wins} of {len(repeated)} utterances")
        print(f"    {scorer.emissions(wavs[repeated[0]], texts[repeated[0]])}")


if __name__ == "__main__":
    main()
