"""Published figures of GPUs, from which training times are estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "tf32", "half"]
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Machine:
    """One GPU, or one core of a CPU.

    Attributes:
        name: as given on the command line.
        memory: bytes.
        fp32: FLOP/s of matrix products in float32.
        tf32: the same on tensor cores in TF32; equals fp32 without them.
        half: the same in float16 or bfloat16 with sums in float32, without sparsity.
        bandwidth: bytes/s between the chip and its memory.
        source: of the figures.
    """

    name: str
    memory: float
    fp32: float
    tf32: float
    half: float
    bandwidth: float
    source: str

    def rate(self, precision: Precision) -> float:
        """Peak FLOP/s."""
        return getattr(self, precision)


def _gpu(name, memory, fp32, tf32, half, bandwidth, source) -> Machine:
    """From GB, TFLOP/s and GB/s, as in data sheets."""
    rates = (x * TERA for x in (fp32, tf32, half))
    return Machine(name, memory * GIGA, *rates, bandwidth * GIGA, source)


_GA102 = "NVIDIA Ampere GA102 GPU architecture, white paper v2"
MACHINES = {
    machine.name: machine
    for machine in (
        _gpu("v100", 32, 15.7, 15.7, 125, 900, "NVIDIA V100 data sheet, SXM2 32 GB"),
        _gpu("a100-40", 40, 19.5, 156, 312, 1555, "NVIDIA A100 data sheet, SXM 40 GB"),
        _gpu("a100", 80, 19.5, 156, 312, 2039, "NVIDIA A100 data sheet, SXM 80 GB"),
        _gpu("h100", 80, 67, 494.5, 989.5, 3350, "NVIDIA H100 data sheet, SXM"),
        _gpu("h200", 141, 67, 494.5, 989.5, 4800, "NVIDIA H200 data sheet, SXM"),
        _gpu("rtx3090", 24, 35.6, 35.6, 71, 936, _GA102),
        _gpu("rtx4090", 24, 82.6, 82.6, 165.2, 1008, "NVIDIA Ada GPU architecture"),
        _gpu("a6000", 48, 38.7, 77.4, 154.8, 768, _GA102 + ", RTX A6000"),
        _gpu("a40", 48, 37.4, 74.8, 149.7, 696, "NVIDIA A40 data sheet"),
    )
}
# One core of the machine on which benchmarks/results-cpu.json was measured (200 GFLOP/s
# on two cores); its bandwidth is for a copy of 256 MB, see benchmarks/plan_check.py.
CPU_CORE = Machine(
    "cpu", 16e9, 100e9, 100e9, 100e9, 10e9, "benchmarks/results-cpu.json, one core"
)
