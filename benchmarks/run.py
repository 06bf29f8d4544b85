"""Cost of the losses against other ways to compute them.

    python -m benchmarks.run --device cpu --sweep full

Writes results-DEVICE.json, cost-DEVICE.png and RESULTS.md. See README.md.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import report
from benchmarks.forms import KINDS
from benchmarks.measure import (
    PROBLEM,
    WARM_UP,
    Gemm,
    check,
    compare,
    describe_machine,
    floor,
    load,
    time_forms,
)
from benchmarks.problems import Shape, make_problem

JOINTS = {"cpu": (320, 640), "cuda": (640, 640)}  # student's, teacher's
PLAIN = tuple(x for x in KINDS if x != "weighted")
SHARES = (1e-2, 1e-3, 1e-5)  # of a visit; nodes of the teacher's posterior above
PEAKY = ("transducer", "weighted")
MAIN = ("collapsed", "complement", "path_topk", "transducer")


def _everything(shape: Shape) -> list[tuple]:
    return [
        (shape, "plain", PLAIN),
        (shape, "ragged", ("collapsed",)),
        (shape, "peaky", PEAKY),
    ]


def _collapsed(*shapes: Shape) -> list[tuple]:
    return [(shape, "plain", ("collapsed",)) for shape in shapes]


# (shape, variant, kinds); those beside the main shapes draw the plots
SWEEPS = {
    ("cpu", "small"): [
        *_everything(Shape(2, 50, 10, 500)),
        *_collapsed(Shape(2, 50, 10, 2000), Shape(2, 100, 20, 500)),
    ],
    ("cpu", "full"): [
        (Shape(4, 200, 40, 5000), "plain", MAIN),
        (Shape(4, 200, 40, 5000), "ragged", ("collapsed",)),
        *_everything(Shape(4, 200, 40, 500)),
        *_collapsed(Shape(4, 50, 10, 500), Shape(4, 100, 20, 500)),
        *_collapsed(Shape(4, 200, 40, 2000)),
    ],
    ("cuda", "small"): [
        *_everything(Shape(4, 100, 20, 500)),
        *_collapsed(Shape(4, 100, 20, 2000), Shape(4, 200, 40, 500)),
    ],
    ("cuda", "full"): [
        *_everything(Shape(16, 400, 60, 500)),
        *_collapsed(Shape(16, 100, 15, 500), Shape(16, 200, 30, 500)),
        *_collapsed(Shape(16, 400, 60, 1000), Shape(16, 400, 60, 2000)),
        *_everything(Shape(16, 400, 60, 5000)),
    ],
}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sweep", choices=("small", "full"), default="small")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path(__file__).parent,
        help="default: the folder of this file",
    )
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats: {args.repeats} is below 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch sees no CUDA device here; use cpu")
    return args


def command_of(args: argparse.Namespace) -> str:
    """The command line that repeats this run, with the variables that matter."""
    names = ("MKL_DEBUG_CPU_TYPE", "OMP_NUM_THREADS")
    settings = [f"{x}={os.environ[x]}" for x in names if x in os.environ]
    options = [f"--device {args.device} --sweep {args.sweep} --repeats {args.repeats}"]
    if args.kinds != list(KINDS):
        options.append("--kinds " + " ".join(args.kinds))
    return " ".join([*settings, "python -m benchmarks.run", *options])


def run_kind(kind_name: str, folder: Path, args, progress: tqdm) -> dict:
    """All forms of a kind on one problem: memory and values first, then time."""
    kind, device = KINDS[kind_name], args.device
    problem = load(folder / PROBLEM, device)
    rows = {}
    for name, form in kind.forms.items():
        if device == "cuda" or not form.triton:
            progress.set_postfix_str(f"{kind_name}: {name}")
            rows[name] = check(folder, kind_name, name, device)
        progress.update()
    ran = {name: row for name, row in rows.items() if "failure" not in row}
    for name, row in ran.items():
        compare(row, next(iter(ran.values())), kind.forms[name].exact)
    forms = {name: kind.forms[name] for name in ran if "failure" not in ran[name]}
    progress.set_postfix_str(f"{kind_name}: timing")
    seconds, rates = time_forms(forms, problem, device, args.repeats, progress.update)
    progress.update((len(kind.forms) - len(forms)) * (args.repeats + 1))
    rate = statistics.median(rates)
    for name, times in seconds.items():
        rows[name]["seconds"] = times
        rows[name]["floor"] = floor(kind, kind.forms[name], problem, rate)
    return {"kind": kind_name, "gemm_flops_per_second": rate, "rows": rows}


def sizes_of(problem) -> dict:
    """Bytes that any form moves or keeps, and of what naive ones write out."""
    student, teacher = problem.student, problem.teacher
    gradients = sum(x.numel() for x in student.tensors)
    teacher_inputs = sum(x.numel() for x in teacher.tensors)
    visited = problem.node_weights[problem.nodes]
    return {
        "compulsory_bytes": 4 * (2 * gradients + teacher_inputs),
        "gradient_bytes": 4 * gradients,
        "logits_bytes": 4 * student.shape.numel(),
        "visited": {str(x): (visited > x).float().mean().item() for x in SHARES},
    }


def keep_others(results: dict, args: argparse.Namespace) -> None:
    """Keep the tables of an earlier run that this one does not replace."""
    earlier = args.output_dir / f"results-{args.device}.json"
    if not earlier.exists():
        return
    old = json.loads(earlier.read_text())
    results["command"] = f"{old['command']}\n    {results['command']}"
    results["cases"] = [x for x in old["cases"] if x["kind"] not in args.kinds]


def main(argv=None) -> int:
    """0, or 1 where a form failed although it could run, or disagreed."""
    args = parse_args(argv)
    plan = [
        (shape, variant, [x for x in kinds if x in args.kinds])
        for shape, variant, kinds in SWEEPS[args.device, args.sweep]
    ]
    forms = sum(len(KINDS[kind].forms) for *_, kinds in plan for kind in kinds)
    machine = describe_machine(args.device)
    machine["gemm_flops_per_second"] = max(Gemm(args.device).rate() for _ in range(9))
    machine["mkl_debug_cpu_type"] = os.environ.get("MKL_DEBUG_CPU_TYPE")
    print(report.describe(machine), flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results = {"command": command_of(args), "machine": machine, "cases": []}
    if args.kinds != list(KINDS):
        keep_others(results, args)
    joint, teacher_joint = JOINTS[args.device]
    with (
        tempfile.TemporaryDirectory() as temporary,
        tqdm(total=forms * (args.repeats + 2), unit="run") as progress,
    ):
        folder = Path(temporary)
        torch.save(make_problem(Shape(1, 12, 3, 32), "plain", 8, 8), folder / WARM_UP)
        for shape, variant, kinds in plan:
            if not kinds:
                continue
            progress.set_description(f"{shape} {variant}")
            problem = make_problem(shape, variant, joint, teacher_joint)
            torch.save(problem, folder / PROBLEM)
            case = {
                "shape": list(shape),
                "variant": variant,
                "joints": [joint, teacher_joint],
                **sizes_of(problem),
            }
            for kind in kinds:
                results["cases"].append(
                    {**case, **run_kind(kind, folder, args, progress)}
                )
                report.write_json(results, args.output_dir, args.device)
    report.write_all(args.output_dir)
    failures = report.failures(results)
    print("\n".join(failures) if failures else "all forms that ran agree")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
