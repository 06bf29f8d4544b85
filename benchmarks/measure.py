"""Time, memory and value of one form; rate of the machine."""

import ctypes
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor

from benchmarks.forms import KINDS, Form, Kind, kernels
from benchmarks.problems import Problem

# Denormal gradients make matrix products on a CPU several times slower. Every form runs
# with them flushed to zero; set here, before torch starts the threads that inherit it.
torch.set_flush_denormal(True)

PROBLEM, WARM_UP = "problem.pt", "warm_up.pt"  # in the folder that processes share
GEMM_SIZE = 2048
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 2e-3  # of their size

warnings.filterwarnings("ignore", message="torchaudio.functional")  # deprecations
warnings.filterwarnings("ignore", message="The value of the smallest subnormal")


def load(problem_file: Path, device: str) -> Problem:
    return torch.load(problem_file, map_location=device, weights_only=False)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def run_once(form: Form, problem: Problem, device: str) -> tuple[float, Tensor]:
    """Seconds of loss and backward, and the loss; gradients are left on the problem."""
    for parameter in problem.parameters:
        parameter.grad = None
    wait(device)
    start = time.perf_counter()
    with kernels(form.triton):
        loss = form.run(problem)
        loss.backward()
    wait(device)
    return time.perf_counter() - start, loss.detach()


def _status(field: str) -> int:
    """Bytes, of a line such as 'VmHWM:  1234 kB' of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [x for x in lines if x.startswith(field + ":")]
    return int(line.split()[1]) * 1024


class PeakMemory:
    """Peak bytes of this process since the object was made, beyond those it had then.

    On a CPU the peak of the resident set, which Linux resets on request. It is
    not `ru_maxrss`: that one survives fork and exec, and would report the parent's.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _status("VmRSS")

    def extra(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() - self.before
        return _status("VmHWM") - self.before


def _check_once(folder: Path, kind: str, name: str, device: str) -> dict:
    """Run in a separate process, so that no form finds another's memory."""
    form = KINDS[kind].forms[name]
    run_once(form, load(folder / WARM_UP, device), device)  # loads libraries
    problem = load(folder / PROBLEM, device)
    memory = PeakMemory(device)
    _, loss = run_once(form, problem, device)
    extra = memory.extra()
    gradients = [x.grad for x in problem.parameters if x.grad is not None]
    norms = [x.double().norm().item() for x in gradients]
    return {"loss": loss.item(), "gradient_norms": norms, "extra_bytes": extra}


def check(folder: Path, kind: str, name: str, device: str) -> dict:
    """Loss, gradient norms and extra memory of a form, or why they are missing."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            job = pool.submit(_check_once, folder, kind, name, device)
            return job.result()
    except BrokenProcessPool:
        return {"failure": "the process was killed: out of memory?"}
    except ImportError as error:
        return {"failure": shorten(str(error), 100), "missing": True}
    except Exception as error:  # a form that fails becomes a row with the reason
        return {"failure": shorten(f"{type(error).__name__}: {error}", 100)}


def deviation(row: dict, reference: dict) -> tuple[float, float]:
    """Of the loss, and the largest of the norm of a gradient, as fractions."""

    def off(x: float, y: float) -> float:
        return abs(x - y) / max(abs(y), 1e-12)

    norms = zip(row["gradient_norms"], reference["gradient_norms"], strict=True)
    return off(row["loss"], reference["loss"]), max(off(x, y) for x, y in norms)


def compare(row: dict, reference: dict, is_exact: bool) -> None:
    """Marks a row that differs from the reference by more than float32 sums do."""
    loss, gradient = deviation(row, reference)
    if not is_exact:
        row["gradient_deviation"] = gradient
    elif gradient > GRADIENT_TOLERANCE:
        row["failure"] = f"disagrees: norm of a gradient is off by {gradient:.1e}"
    if loss > LOSS_TOLERANCE:
        row["failure"] = f"disagrees: loss is off by {loss:.1e}"


class Gemm:
    """Square float32 matrix product, the rate that the floor is counted with."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.x = torch.randn(GEMM_SIZE, GEMM_SIZE, device=device)
        self.out = torch.empty_like(self.x)

    def rate(self) -> float:
        """FLOP/s of one product."""
        wait(self.device)
        start = time.perf_counter()
        torch.mm(self.x, self.x, out=self.out)
        wait(self.device)
        return 2 * GEMM_SIZE**3 / (time.perf_counter() - start)


def time_forms(
    forms: dict[str, Form],
    problem: Problem,
    device: str,
    repeats: int,
    step: Callable[[], None],
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each form, and the GEMM rate, in rounds.

    Each round runs every form once, every other round in reverse order, so that a drift
    of the machine affects all of them. The first round is not counted.
    """
    gemm = Gemm(device)
    seconds, rates = {name: [] for name in forms}, []
    for turn in range(repeats + 1):
        rate = gemm.rate()
        order = list(forms) if turn % 2 else list(reversed(forms))
        for name in order:
            taken, _ = run_once(forms[name], problem, device)
            if turn:
                seconds[name].append(taken)
            step()
        if turn:
            rates.append(rate)
    return seconds, rates


def floor(kind: Kind, form: Form, problem: Problem, rate: float) -> dict:
    """The floor of every form that leaves no nodes out.

    Matrix products: 3 with the student's output layer at each node (logits, and the
    gradients of hidden layer and weight), 1 with the teacher's where it is read.
    """
    nodes = int(problem.nodes.sum())
    if kind.nodes == "band":
        nodes = int(problem.nodes.gather(2, problem.ranges).sum())
    student, teacher = (x.weight.numel() for x in (problem.student, problem.teacher))
    flops = nodes * (6 * student + 2 * teacher * form.reads_teacher)
    return {"nodes": nodes, "flops": flops, "seconds": flops / rate}


def describe_machine(device: str) -> dict:
    """The description of the machine in RESULTS.md."""
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("k2", "torchaudio", "triton"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    models = [x.split(":")[1].strip() for x in cpu if x.startswith("model name")]
    return {
        "cpu": models[0] if models else "unknown",
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }
