"""The planner against measurements: benchmarks, FSDD, ESPnet's published trainings.

    python -m benchmarks.plan_check lattice
    python -m benchmarks.plan_check fsdd
    python -m benchmarks.plan_check espnet --espnet_root <checkout of ESPnet>
    python -m benchmarks.plan_check memory
    python -m benchmarks.plan_check machine

The tables of docs/planning.md are made by these. The last two measure for a minute or
two, on one thread: OMP_NUM_THREADS=1 MKL_DEBUG_CPU_TYPE=5.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import yaml

from espnet_kd.planning.machines import CPU_CORE, MACHINES
from espnet_kd.planning.model_costs import Speech, build, of_config
from espnet_kd.planning.training import (
    DENSE_COPIES,
    DENSE_KD_COPIES,
    Teaching,
    lattice_memory,
    settings_of,
    training_memory,
    training_time,
)
from espnet_kd.report.render import table

HERE = Path(__file__).parent
FSDD = HERE.parent / "egs/fsdd/asr1/conf"
SPEEDS = 1 / 0.9 + 1 + 1 / 1.1  # of three-fold speed perturbation


class Row(NamedTuple):
    """What was measured and what is planned, in one unit."""

    name: str
    measured: float
    planned: float

    @property
    def ratio(self) -> float:
        return self.planned / self.measured


# ---- lattice losses, from results-cpu.json

# Dense forms that ESPnet's or our training uses, and the copies planned for them.
DENSE = {"transducer": ("naive, torchaudio", DENSE_COPIES)}
DENSE_KD = ("dense", DENSE_KD_COPIES)
LEAN = ("ours, torch", "ours, k2")


def lattice_memories() -> list[Row]:
    """MB of every measured problem: dense and lean."""
    rows = []
    for case in _cases():
        batch, frames, labels, vocabulary = case["shape"]
        joint, _ = case["joints"]
        name = f"{case['kind']} B={batch} T={frames} U={labels} V={vocabulary}"
        padded = batch * frames * (labels + 1)
        forms = dict([DENSE.get(case["kind"], DENSE_KD)])
        for form, measured in case["rows"].items():
            if form in forms:
                planned = lattice_memory(padded, vocabulary, joint, forms[form])
            elif form in LEAN and case["kind"] not in ("band", "pruned"):
                nodes = measured["floor"]["nodes"]
                planned = lattice_memory(nodes, vocabulary, joint, 0, "cpu")
                planned += case["gradient_bytes"]
            else:
                continue
            rows.append(
                Row(f"{name}, {form}", measured["extra_bytes"] / 1e6, planned / 1e6)
            )
    return rows


def lattice_times() -> list[Row]:
    """Seconds of the lean form: products at the rate of GEMM, no traffic."""
    rows = []
    for case in _cases():
        measured = case["rows"].get("ours, torch")
        if measured is None or case["kind"] in ("band", "pruned"):
            continue
        joint, of_teacher = case["joints"]
        nodes = measured["floor"]["nodes"]
        reads = 0 if case["kind"] == "transducer" else 1
        reads += case["kind"] == "full"  # all classes: once more in the backward pass
        products = 4 * joint + reads * of_teacher
        seconds = (
            2 * nodes * case["shape"][3] * products / case["gemm_flops_per_second"]
        )
        name = f"{case['kind']} {tuple(case['shape'])} {case['variant']}"
        rows.append(Row(name, statistics.median(measured["seconds"]), seconds))
    return rows


def _cases() -> list[dict]:
    return json.loads((HERE / "results-cpu.json").read_text())["cases"]


# ---- trainings on FSDD, egs/fsdd/asr1/RESULTS.md

FSDD_SPEECH = Speech(rate=8000, seconds=2.5, longest=4.0, labels=5.7)
FSDD_VOCABULARY = 32
FSDD_MINUTES = {"teacher": 17, "student": 3, "student with KD": 7}  # 6 to 8


def fsdd_trainings() -> list[Row]:
    """Minutes of wall-clock, one thread each, two trainings side by side."""
    teacher, student = (
        of_config(FSDD / f"train_{name}.yaml", FSDD_VOCABULARY, FSDD_SPEECH)
        for name in ("teacher", "student")
    )
    rows = []
    for name, model, teaching in (
        ("teacher", teacher, None),
        ("student", student, None),
        ("student with KD", student, Teaching((teacher,), lattice_reads=1)),
    ):
        config = FSDD / f"train_{name.split()[0]}.yaml"
        settings = settings_of(yaml.safe_load(config.read_text()))
        time_ = training_time(
            model, settings, FSDD_SPEECH, 0.0, CPU_CORE, teaching=teaching
        )
        rows.append(Row(name, FSDD_MINUTES[name], time_.value / 60))
    return rows


# ---- trainings that ESPnet has published


class Published(NamedTuple):
    """A training whose time is in its configuration, or in the recipe's README."""

    config: str  # in egs2, without .yaml; its first part names the recipe
    machine: str
    gpus: int
    hours: float  # of wall-clock
    epochs: int  # in these hours


class Corpus(NamedTuple):
    """What a recipe trains on."""

    hours: float  # of an epoch, with speed perturbation
    vocabulary: int
    speech: Speech = Speech()


CORPORA = {
    "librispeech": Corpus(960.9 * SPEEDS, 5000),
    "librispeech_100": Corpus(100.6 * SPEEDS, 5000),
    "swbd": Corpus(300 * SPEEDS, 2000, Speech(seconds=4.5)),
    "ksponspeech": Corpus(965, 2309, Speech(seconds=5.6)),
    "aishell2": Corpus(1000 * SPEEDS, 5200, Speech(seconds=3.6, labels=3.5)),
}
TUNING = "/asr1/conf/tuning/"
LIBRI = "librispeech" + TUNING
_TRANSFORMER_100 = (
    "train_asr_transformer_win400_hop160_ctc0.3_lr2e-3_warmup15k_timemask5_amp_"
    "no-deterministic"
)
PUBLISHED = [
    Published(LIBRI + "train_asr_conformer10_hop_length160", "v100", 4, 84, 50),
    Published(LIBRI + "train_asr_conformer8", "v100", 3, 72, 50),
    Published(LIBRI + "train_asr_conformer7_n_fft512_hop_length256", "v100", 8, 36, 35),
    Published(
        LIBRI + "train_asr_conformer6_n_fft400_hop_length160", "v100", 16, 36, 35
    ),
    Published(LIBRI + "train_asr_e_branchformer", "a100-40", 8, 40 / 60, 1),
    Published(
        LIBRI + "train_asr_branchformer_hop_length160_e18_linear3072",
        "a6000",
        4,
        100 / 60,
        1,
    ),
    Published(LIBRI + "train_asr_multiconvformer_conv_fusion", "a100", 2, 110 / 60, 1),
    Published(
        f"librispeech_100{TUNING}train_asr_multiconvformer_conv_fusion_linear1024",
        "a100",
        1,
        15 / 60,
        1,
    ),
    Published(
        f"librispeech_100{TUNING}{_TRANSFORMER_100}", "v100", 1, 42834 / 3600, 70
    ),
    Published(f"swbd{TUNING}train_asr_conformer2", "v100", 8, 36, 150),
]
# Not among those that the constants were chosen on.
HELD_OUT = [
    Published(LIBRI + "transducer/train_conformer-rnn_transducer", "a6000", 4, 144, 25),
    Published(
        f"ksponspeech{TUNING}train_asr_conformer8_n_fft512_hop_length256",
        "v100",
        4,
        36,
        35,
    ),
    Published(f"aishell2{TUNING}train_asr_conformer", "v100", 8, 96, 50),
]


def published_trainings(egs2: Path, which: list[Published]) -> list[Row]:
    """GPU hours."""
    rows = []
    for each in which:
        config = egs2 / f"{each.config}.yaml"
        recipe = each.config.split("/")[0]
        corpus = CORPORA[recipe]
        # Only the time is needed: one length will do.
        speech = replace(corpus.speech, longest=corpus.speech.seconds)
        model = of_config(config, corpus.vocabulary, speech)
        settings = settings_of(yaml.safe_load(config.read_text()))
        settings = replace(settings, max_epoch=each.epochs)
        audio = 3600 * corpus.hours
        planned = training_time(
            model, settings, corpus.speech, audio, MACHINES[each.machine]
        )
        name = f"{recipe} {config.stem[:45]}, {each.gpus} {each.machine}"
        name += f", {settings.precision}"
        rows.append(Row(name, each.gpus * each.hours, planned.value / 3600))
    return rows


# ---- measured here: memory of a training step, rates of this machine

STEPS = [  # configuration, vocabulary, audio, utterances
    (FSDD / "train_teacher.yaml", FSDD_VOCABULARY, FSDD_SPEECH, 9),
    (FSDD / "train_student.yaml", FSDD_VOCABULARY, FSDD_SPEECH, 6),
]


def step_memories() -> list[Row]:
    """MB that forward, backward and update of one batch take, weights and all."""
    rows = []
    for config, vocabulary, speech, utterances in STEPS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            job = pool.submit(_step, config, vocabulary, speech, utterances)
            rows.append(job.result())
    return rows


def _step(config: Path, vocabulary: int, speech: Speech, utterances: int) -> Row:
    import torch

    from benchmarks.measure import PeakMemory

    settings = settings_of(yaml.safe_load(config.read_text()))
    settings = replace(
        settings,
        batch_type="numel",
        batch_bins=round(utterances * _bins(speech, vocabulary)),
    )
    plan = training_memory(of_config(config, vocabulary, speech), settings, speech)
    model = build(config, vocabulary, speech.rate)
    samples = round(speech.rate * speech.longest)
    labels = round(speech.labels * speech.longest)
    batch = {
        "speech": 0.1 * torch.randn(utterances, samples),
        "speech_lengths": torch.full((utterances,), samples),
        "text": torch.randint(2, vocabulary - 1, (utterances, labels)),
        "text_lengths": torch.full((utterances,), labels),
    }
    small = {name: x[:1] for name, x in batch.items()}
    # Libraries are loaded before the count begins.
    model(**small)[0].backward()
    unused = torch.zeros(1, requires_grad=True)
    unused.grad = torch.zeros(1)
    torch.optim.Adam([unused]).step()
    for parameter in model.parameters():
        parameter.grad = None
    memory = PeakMemory("cpu")
    optimiser = torch.optim.Adam(model.parameters())
    model(**batch)[0].backward()
    optimiser.step()
    weights = 4 * sum(p.numel() for p in model.parameters())
    measured = memory.extra() + weights
    planned = plan.value - 1e9  # without CUDA
    return Row(f"{config.stem}, {utterances} utterances", measured / 1e6, planned / 1e6)


def _bins(speech: Speech, vocabulary: int) -> float:
    return speech.longest * (speech.rate + speech.labels * vocabulary)


def rates() -> dict[str, float]:
    """The constants of the planner, measured on one core of this machine."""
    import torch

    from espnet_kd.data.format import format_data

    x = torch.randn(2**26)
    y = torch.empty_like(x)
    found = {}
    started = time.perf_counter()
    for _ in range(5):
        y.copy_(x)
    found["GB/s copied, read and written"] = (
        5 * 2 * x.numel() * 4 / (time.perf_counter() - started) / 1e9
    )
    with tempfile.TemporaryDirectory() as folder:
        hours = _noise(Path(folder))
        started = time.process_time()
        format_data(Path(folder, "data"), Path(folder, "dump"), 16000, [0.9])
        spent = time.process_time() - started
        found["core seconds per second of audio, speed perturbation"] = spent / hours
    model = build(FSDD / "train_teacher.yaml", FSDD_VOCABULARY, 16000)
    speech = torch.randn(10, 160000)
    started = time.process_time()
    model.collect_feats(speech, torch.full((10,), 160000), None, None)
    found["core seconds per second of audio, features"] = (
        time.process_time() - started
    ) / 100
    return found


def _noise(folder: Path, utterances: int = 20, seconds: int = 12) -> float:
    """A Kaldi folder of noise; seconds of audio."""
    import numpy as np
    import soundfile

    data = folder / "data"
    data.mkdir()
    lines = []
    for n in range(utterances):
        wave = 0.1 * np.random.default_rng(n).standard_normal(16000 * seconds)
        soundfile.write(folder / f"{n:02}.wav", wave, 16000)
        lines.append(f"utt{n:02} {folder}/{n:02}.wav\n")
    (data / "wav.scp").write_text("".join(lines))
    for name, value in (("text", "a b"), ("utt2spk", "spk")):
        rows = [f"utt{n:02} {value}\n" for n in range(utterances)]
        (data / name).write_text("".join(rows))
    return float(utterances * seconds)


# ---- tables


def show(title: str, unit: str, rows: list[Row]) -> str:
    cells = {
        title: [row.name for row in rows],
        f"measured, {unit}": [f"{row.measured:.3g}" for row in rows],
        f"planned, {unit}": [f"{row.planned:.3g}" for row in rows],
        "planned / measured": [f"{row.ratio:.2f}" for row in rows],
    }
    spread = math.exp(statistics.fmean(abs(math.log(row.ratio)) for row in rows))
    low, high = min(r.ratio for r in rows), max(r.ratio for r in rows)
    return "\n".join(
        [
            *table(cells),
            "",
            f"Typically off by a factor of {spread:.2f}; {low:.2f} to {high:.2f}.",
            "",
        ]
    )


def main(cmd: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "what", choices=["lattice", "fsdd", "espnet", "memory", "machine"]
    )
    parser.add_argument("--espnet_root", type=Path, help="checkout of ESPnet")
    args = parser.parse_args(cmd)
    if args.what == "lattice":
        print(show("Memory of the lattice losses", "MB", lattice_memories()))
        print(show("Time of the lean form", "s", lattice_times()))
    elif args.what == "fsdd":
        print(show("Training on FSDD", "minutes", fsdd_trainings()))
    elif args.what == "espnet":
        if args.espnet_root is None:
            parser.error("--espnet_root is needed")
        for title, which in (("Chosen on", PUBLISHED), ("Held out", HELD_OUT)):
            rows = published_trainings(args.espnet_root / "egs2", which)
            print(show(title, "GPU h", rows))
    elif args.what == "memory":
        print(show("A training step", "MB", step_memories()))
    else:
        for name, value in rates().items():
            print(f"{name}: {value:.3g}")


if __name__ == "__main__":
    main()
