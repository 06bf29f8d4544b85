"""Planned bytes against those of files written by the stages."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_kd.bin import kd_set
from espnet_kd.data.format import format_data
from espnet_kd.data.kaldi import cuts_from_kaldi
from espnet_kd.planning import data_sizes
from espnet_kd.planning.model_costs import Speech
from espnet_kd.targets.hypotheses import SearchResult
from espnet_kd.targets.shards import decode_cuts

UTTERANCES, SECONDS, RATE, NBEST = 6, 4, 8000, 3
SPEECH = Speech(rate=RATE, seconds=SECONDS, longest=SECONDS, labels=4.0)
AUDIO = float(UTTERANCES * SECONDS)
# 15 characters and 4 tokens per second, as in English
TEXT = "and here is what was seen of it by one of the other two men "[: 15 * SECONDS]
TOKENS = list(range(1000, 1000 + 4 * SECONDS))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A Kaldi folder of noise."""
    folder = tmp_path_factory.mktemp("recipe")
    data = folder / "data"
    data.mkdir()
    rows: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": []}
    for n in range(UTTERANCES):
        key = f"1272-128104-{n:04}"  # ids as long as LibriSpeech's
        noise = 0.1 * np.random.default_rng(n).standard_normal(RATE * SECONDS)
        soundfile.write(folder / f"{key}.wav", noise, RATE)
        for name, value in (
            ("wav.scp", folder / f"{key}.wav"),
            ("text", TEXT),
            ("utt2spk", "1272"),
        ):
            rows[name].append(f"{key} {value}\n")
    for name, lines in rows.items():
        (data / name).write_text("".join(lines))
    return data


def size_of(folder: Path, pattern: str = "*") -> int:
    return sum(f.stat().st_size for f in folder.rglob(pattern) if f.is_file())


def test_perturbed_audio_is_written_and_the_rest_is_not(data, tmp_path):
    factors = [0.9, 1.0, 1.1]
    format_data(data, tmp_path / "dump", RATE, factors)
    planned = data_sizes.formatted_audio(AUDIO, SPEECH, factors, is_whole=True)
    written = size_of(tmp_path / "dump", "*.wav")
    assert planned.value == pytest.approx(written, rel=0.001)


def test_segments_are_written_at_every_speed():
    # 10 h at 16 kHz in 16 bit, 1/0.9 + 1 + 1/1.1 times as long
    speech = Speech(seconds=3600.0)
    found = data_sizes.formatted_audio(36000.0, speech, [0.9, 1, 1.1], is_whole=False)
    seconds = 36000 * (1 / 0.9 + 1 + 1 / 1.1)
    assert found.value == pytest.approx(seconds * 32000, rel=1e-5)


@pytest.fixture(scope="module")
def shard(data, tmp_path_factory) -> Path:
    """Hypotheses as written by teacher decoding, with dummy texts."""
    path = tmp_path_factory.mktemp("decoded") / "hypotheses.1.jsonl"

    def search(utterances: list[np.ndarray]) -> list[list[SearchResult]]:
        scores = -13.482918 - 1.7182818 * np.arange(NBEST)
        nbest = [
            SearchResult(f"{TEXT[:-1]}{n}", TOKENS, s, None)
            for n, s in enumerate(scores)
        ]
        return [nbest for _ in utterances]

    decode_cuts(list(cuts_from_kaldi(data)), search, path)
    return path


def test_hypotheses(shard):
    planned = data_sizes.hypotheses(AUDIO, SPEECH, NBEST).value
    assert planned == pytest.approx(shard.stat().st_size, rel=0.1)


def test_kd_set(shard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = f"--labelled {shard} --labelled_targets hypotheses --nbest {NBEST}"
    kd_set.main([*words.split(), "--output_dir", "kd"])
    planned = data_sizes.kd_set(AUDIO, SPEECH, NBEST).value
    written = size_of(tmp_path / "kd") - size_of(tmp_path / "kd", "stats.json")
    assert planned == pytest.approx(written, rel=0.35)


def test_soft_targets_by_hand():
    # One utterance of 10 s: 250 frames, 40 labels.
    speech = Speech(seconds=10.0, labels=4.0)
    found = data_sizes.soft_targets(10.0, speech, frame_rate=25.0, top_k=8, band=5)
    sizes = {re.sub(r"[^a-z ].*", "", t.name).strip(): t.size.value for t in found}
    assert sizes == {
        "frames": 250 * 8 * 4,
        "tokens": 41 * 8 * 4,
        "path": 290 * (6 + 8 * 4 + 2),
        "lattice": 2 * 250 * 41 * 2,
        "band of": 2 * 250 * 5 * 2,
    }
