"""Word error rate and real-time factor of a model in each form."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut import Cut
from tqdm import tqdm

from espnet_kd.data.kaldi import cuts_from_kaldi
from espnet_kd.export.inference import load_speech2text
from espnet_kd.models.config import read_config, task_of
from espnet_kd.report.scoring import score
from espnet_kd.targets.shards import check_cuts
from espnet_kd.teacher.decoding import (
    SearchResult,
    TeacherDecoder,
    read_options,
    sampling_rate,
)

Decoder = Callable[[np.ndarray], Sequence[SearchResult]]


@dataclass
class Passes:
    """Output and decoding times of one form.

    Attributes:
        seconds: of decoding, for each pass over the data.
        texts: of the first pass, by utterance id.
    """

    seconds: list[float] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


def measure_forms(
    folder: str | Path,
    files: Mapping[str, str],
    data_dir: str | Path,
    inference_config: str | Path | None = None,
    max_utterances: int | None = None,
    repeats: int = 3,
) -> dict[str, Any]:
    """Decode a Kaldi data folder with each form of an exported model.

    ESPnet's `Speech2Text` decodes one utterance at a time in one CPU thread. The forms
    take turns utterance by utterance, so that other load on the machine affects all of
    them alike. Reading of audio is not timed.

    Args:
        folder: of the export.
        files: form -> file in it; one form must be "dense".
        data_dir: with wav.scp and text.
        inference_config: decode YAML of ESPnet; None: the defaults of stock inference.
        max_utterances: the first ones only.
        repeats: passes over the data.

    Returns:
        The settings, and for each form under `forms`: `wer` (fraction), `rtf` (median
        over the passes of seconds / seconds of audio), `rtf_of_passes`, and
        `rtf_to_dense` (median over the passes of the ratio, its lowest, its highest).

    Raises:
        ValueError: an utterance has no reference, or audio that does not fit the model.
        FileNotFoundError: a file is missing.
    """
    config = Path(folder) / "config.yaml"
    cuts = _cuts(data_dir, max_utterances)
    check_cuts(cuts, sampling_rate(read_config(config), config))
    options = read_options(read_config(config), task_of(config), inference_config)
    options.pop("batch_size", None)
    with one_thread():
        decoders = {
            form: _decoder(config, Path(folder) / file, files["dense"], options)
            for form, file in files.items()
        }
        passes = take_turns(decoders, cuts, repeats)
    references = {cut.id: cut.supervisions[0].text for cut in cuts}
    audio = sum(cut.duration for cut in cuts)
    dense = passes["dense"].seconds
    forms = {}
    for form, each in passes.items():
        ratios = [one / other for one, other in zip(each.seconds, dense)]
        forms[form] = {
            "wer": score(references, each.texts).rate,
            "rtf": statistics.median(each.seconds) / audio,
            "rtf_of_passes": [seconds / audio for seconds in each.seconds],
            "rtf_to_dense": [statistics.median(ratios), min(ratios), max(ratios)],
        }
    return {
        "data_dir": str(data_dir),
        "inference": options,
        "utterances": len(cuts),
        "audio_seconds": round(audio, 2),
        "repeats": repeats,
        "forms": forms,
    }


def take_turns(
    decoders: Mapping[str, Decoder], cuts: Sequence[Cut], repeats: int
) -> dict[str, Passes]:
    """Decode each cut with each decoder, `repeats` times, in rotating order.

    Each decoder is warmed up with the first cut, untimed.
    """
    names = list(decoders)
    passes = {name: Passes() for name in names}
    for decode in decoders.values():
        decode(_samples(cuts[0]))
    turn = 0
    with tqdm(total=repeats * len(cuts), unit="utt", desc="measuring") as bar:
        for _ in range(repeats):
            for each in passes.values():
                each.seconds.append(0.0)
            for cut in cuts:
                samples = _samples(cut)
                first = turn % len(names)
                for name in names[first:] + names[:first]:
                    started = time.perf_counter()
                    found = decoders[name](samples)
                    passes[name].seconds[-1] += time.perf_counter() - started
                    text = found[0].text if found else ""
                    passes[name].texts.setdefault(cut.id, text)
                turn += 1
                bar.update()
    return passes


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, like one job of stock inference."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def table(record: Mapping[str, Any]) -> str:
    """The forms of an export and their measurements, as Markdown."""
    forms, measured = record["forms"], record.get("measured")
    dense = forms["dense"]["bytes"]
    titles = ["Form", "File", "MB", "of dense"]
    if measured:
        titles += ["WER %", "RTF", "of dense", "lowest - highest"]
    lines = ["| " + " | ".join(titles) + " |", "|---|---" + "|--:" * (len(titles) - 2)]
    lines[1] += "|"
    for form, each in forms.items():
        size = each["bytes"]
        cells = [form, each["file"], f"{size / 1e6:.2f}", f"{size / dense:.2f}"]
        if measured:
            found = measured["forms"][form]
            middle, low, high = found["rtf_to_dense"]
            cells += [
                f"{100 * found['wer']:.2f}",
                f"{found['rtf']:.4f}",
                f"{middle:.2f}",
                f"{low:.2f} - {high:.2f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_notes(forms, measured)]) + "\n"


def _notes(forms: Mapping[str, Any], measured: Mapping[str, Any] | None) -> list[str]:
    notes = ["* MB: bytes of the file / 10^6."]
    if measured is None:
        return notes
    notes.append(
        f"* {measured['utterances']} utterances of {measured['data_dir']}, "
        f"{measured['audio_seconds']:.0f} s of audio; one CPU thread, one utterance "
        "at a time, the forms in turns."
    )
    notes.append(
        "* RTF: seconds of decoding / seconds of audio, median of "
        f"{measured['repeats']} passes. It depends on the machine; the ratio to dense, "
        "with its lowest and highest pass, depends less on it."
    )
    if "csr" in forms:
        notes.append("* csr: linear layers multiply by CSR weights, others are dense.")
    if "2:4" in forms:
        notes.append(
            "* 2:4: CPUs have no kernel for it; the dense one ran on restored values."
        )
    if "int8" in forms:
        notes.append("* int8: ESPnet's dynamic quantisation of linear and LSTM layers.")
    return notes


def _decoder(config: Path, file: Path, dense: str, options: Mapping) -> TeacherDecoder:
    """The stock search with a form of the model.

    Quantisation options of the YAML are ignored: they would make all forms int8.
    """
    options = {k: v for k, v in options.items() if not k.startswith("quantize_")}
    decoder = TeacherDecoder(config, file.with_name(dense), options)
    decoder.speech2text = load_speech2text(config, file, **options)
    return decoder


def _cuts(data_dir: str | Path, max_utterances: int | None) -> list[Cut]:
    cuts = list(cuts_from_kaldi(data_dir))[:max_utterances]
    if not cuts:
        raise ValueError(f"{data_dir}/wav.scp: no utterances to decode")
    for cut in cuts:
        if cut.supervisions[0].text is None:
            raise ValueError(
                f"{data_dir}/text: no line for utterance {cut.id}; needed for the WER"
            )
    return cuts


def _samples(cut: Cut) -> np.ndarray:
    return cut.load_audio()[0]
