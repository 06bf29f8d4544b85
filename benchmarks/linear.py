"""Time of one linear layer with sparse (CSR) and int8 weights, relative to dense.

    python -m benchmarks.linear

Torch's own kernels, one thread of the CPU; the forms take turns, and the lowest of the
runs counts. A ratio above 1 is slower than dense.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from tqdm import tqdm

from espnet_kd.export.inference import use_csr

SPARSITIES = (0.6, 0.9, 0.95)


def sparse_layer(width: int, sparsity: float) -> nn.Module:
    """A square layer that multiplies with a CSR weight."""
    model = nn.Sequential(nn.Linear(width, width))
    weight = model[0].weight.data
    weight.masked_fill_(torch.rand_like(weight) < sparsity, 0)
    use_csr(model, ["0.weight"])
    return model


def forms(width: int) -> dict[str, nn.Module]:
    """The layers to compare, by the name of their column."""
    layers: dict[str, nn.Module] = {"dense": nn.Linear(width, width)}
    for sparsity in SPARSITIES:
        layers[f"CSR, {sparsity:.0%} zeros"] = sparse_layer(width, sparsity)
    layers["int8"] = torch.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(width, width)), {nn.Linear}
    )
    return layers


def lowest_seconds(
    layers: Mapping[str, Callable], frames: torch.Tensor, runs: int, calls: int
) -> dict[str, float]:
    """Of `calls` calls, the lowest of `runs` runs of each."""
    seconds = dict.fromkeys(layers, float("inf"))
    for _ in range(runs):
        for name, layer in layers.items():
            started = time.perf_counter()
            for _ in range(calls):
                layer(frames)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


@torch.no_grad()
def main(cmd: list[str] | None = None) -> None:
    """Print the ratios as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--frames", type=int, default=60, help="rows of the input")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--calls", type=int, default=50, help="in each run")
    args = parser.parse_args(cmd)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = []
    for width in tqdm(args.widths, desc="widths"):
        frames = torch.randn(args.frames, width)
        seconds = lowest_seconds(forms(width), frames, args.runs, args.calls)
        dense = seconds.pop("dense")
        rows.append([str(width), *(f"{each / dense:.2f}" for each in seconds.values())])
    titles = [f"width, torch {torch.__version__.split('+')[0]}", *seconds]
    print("| " + " | ".join(titles) + " |\n|" + "--:|" * len(titles))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
