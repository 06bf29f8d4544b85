"""Whole trainings: resume after a kill, DDP, and stock ESPnet decodes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from espnet_kd.lattice import has_k2
from espnet_kd.tasks.trainer import KDOptimizer
from tests.starts import REPO, environment
from tests.tasks.recipe import KINDS, Recipe, teachers

NODES = {"hybrid": ["frames", "tokens"], "asr_transducer": ["path", "frames"]}


def kd(recipe: Recipe, kind: str, **loss) -> dict:
    """KD from a teacher of the same task on all kinds of nodes that it has."""
    name = "hybrid" if kind == "hybrid" else "asr_transducer"
    conf = dict(losses=[dict(nodes=NODES[name], **loss)])
    return dict(kd_conf=conf, **teachers(recipe.teacher(name)))


def assert_same_model(one: Path, other: Path) -> None:
    first, second = torch.load(one), torch.load(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# -------------------------------------------------------------------------- resume

# Dropout, warm-up and Adam's moments: all must be restored.
RESUMED = dict(
    max_epoch=3,
    num_iters_per_epoch=8,
    batch_size=2,
    optim="adam",
    optim_conf=dict(lr=0.003),
    scheduler="warmuplr",
    scheduler_conf=dict(warmup_steps=20),
    num_att_plot=1,
)
DROPOUT = {
    "hybrid": dict(encoder_conf=dict(dropout_rate=0.2)),
    "asr_transducer": dict(decoder_conf=dict(dropout_rate=0.2)),
}
transducer = "pruned" if has_k2() else "asr_transducer"


def train_until_killed(recipe: Recipe, kind: str, output: str, options: dict) -> None:
    """In a process that is killed in the middle of the second epoch."""
    step, at = KDOptimizer.step, 3 * RESUMED["num_iters_per_epoch"] // 2

    def watched(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        if self.student.updates == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    watched.hooked = True
    KDOptimizer.step = watched
    recipe.train(kind, output, **options)


@pytest.mark.parametrize("kind", ["hybrid", transducer])
def test_resume_after_a_kill(recipe: Recipe, kind: str):
    """The pruned loss (with k2) also has its own warm-up."""
    options = dict(
        RESUMED, **DROPOUT["hybrid" if kind == "hybrid" else "asr_transducer"]
    )
    options.update(kd(recipe, kind))
    whole = recipe.train(kind, f"whole_{kind}", **options)
    killed = recipe.folder / f"killed_{kind}"
    # A forked process has imported everything already.
    process = multiprocessing.get_context("fork").Process(
        target=train_until_killed, args=(recipe, kind, killed.name, options)
    )
    process.start()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    assert (killed / "1epoch.pth").exists() and not (killed / "2epoch.pth").exists()
    recipe.train(kind, killed.name, resume=True, **options)
    assert_same_model(killed / "3epoch.pth", whole / "3epoch.pth")
    stats = [
        torch.load(folder / "checkpoint.pth", **recipe.all_types())["reporter"]["stats"]
        for folder in (killed, whole)
    ]
    for name, value in stats[1][3]["train"].items():
        if "loss" in name:
            assert stats[0][3]["train"][name] == value, name


# ------------------------------------------------------------------------------ DDP


def test_two_processes_train_as_one(recipe: Recipe):
    """No batch normalisation and no dropout; each process has half of every batch."""
    options = dict(kd(recipe, "hybrid"), max_epoch=2)
    one = recipe.train("hybrid", "one_process", **options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2"]
    command += [
        "-m",
        "espnet_kd.bin.asr_train",
        *recipe.options("hybrid", "two", **options),
    ]
    command += ["--multiprocessing_distributed", "false", "--dist_backend", "gloo"]
    run = subprocess.run(
        [*command, "--seed", "3"],
        cwd=REPO,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    states = [
        torch.load(folder / "checkpoint.pth", **recipe.all_types())
        for folder in (one, recipe.folder / "two")
    ]
    start = recipe.build("hybrid", seed=3, stock=True).state_dict()
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(
            states[1]["model"][name], value, rtol=1e-4, atol=1e-6
        )
    moved = [
        name for name in start if not torch.equal(start[name], states[0]["model"][name])
    ]
    assert len(moved) > 20
    stats = [each["reporter"]["stats"][2] for each in states]
    for part in ("train", "valid"):
        names = [n for n in stats[0][part] if "loss" in n]
        assert "loss_kd_tokens" in names
        for name in names:
            expected = pytest.approx(stats[0][part][name], rel=1e-4)
            assert stats[1][part][name] == expected, name


# ------------------------------------------------------------------------- decoding

BLOCKER = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("espnet_kd", "warprnnt_pytorch"):
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.parametrize("kind", ["hybrid", "asr_transducer"])
def test_stock_espnet_decodes_the_student(recipe: Recipe, kind: str):
    training = dict(kd(recipe, kind, classes="topk", k=3), use_matplotlib=True)
    exp = recipe.train(kind, f"student_{kind}", **training)
    assert yaml.safe_load((exp / "config.yaml").read_text())["kd_conf"]["losses"]
    site = recipe.folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(BLOCKER)
    stock = environment(PYTHONPATH=str(site))
    options = ["--ngpu", "0", "--beam_size", "2", "--output_dir", str(exp / "decoded")]
    options += ["--asr_train_config", str(exp / "config.yaml")]
    options += ["--asr_model_file", str(exp / "valid.loss.ave_1best.pth")]
    options += ["--key_file", str(recipe.data / "wav.scp")]
    data = f"{recipe.data}/wav.scp,speech,sound"
    options += ["--data_path_and_name_and_type", data]
    name = f"espnet2.bin.{KINDS[kind][0]}_inference"
    code = (
        "import runpy, sys\n"
        "try:\n    import espnet_kd\n"
        "except ImportError as error:\n    print(error)\n"
        "else:\n    raise SystemExit('espnet_kd can be imported')\n"
        f"sys.argv = [{name!r}, *sys.argv[1:]]\n"
        f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)\n"
        "assert 'espnet_kd' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *options],
        cwd=recipe.folder,
        env=stock,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "espnet_kd is blocked" in run.stdout
    lines = (exp / "decoded/1best_recog/text").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"utt{n}" for n in range(8)]
