"""Two ESPnets read each other's models: run from the repository's root, for minutes.

    python tests/models/across_versions.py .venv-A/bin/python .venv-C/bin/python

Each Python writes a model of every encoder with its ESPnet, what stock ESPnet makes of
audio with it, and what `espnet_kd.bin.export` makes of the model. The other reads them:
the model through espnet_kd, the exported folder through stock ESPnet as well. Prints
the largest difference of each; exits 1 above 1e-5.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5


def write(folder: Path) -> None:
    """In one environment: a recipe with models, outputs and exported folders."""
    import torch

    from espnet_kd.export.folder import export_folder
    from tests.models.encoders import ENCODERS, encode, folders, write_model
    from tests.tasks.recipe import Recipe, load_stock

    recipe = Recipe(folder)
    os.chdir(folder)
    models = [write_model(recipe, *each) for each in zip(folders(), *zip(*ENCODERS))]
    for model in (*models, recipe.teacher("asr_transducer", "zz_asr_transducer")):
        exp = Path(model.config).parent
        torch.save(encode(load_stock(model), recipe), exp / "outputs.pth")
        export_folder(exp, "model.pth", exp / "plain")


def read(folder: Path) -> None:
    """In the other environment: compare. A line for each encoder."""
    import torch

    from espnet_kd.models.loading import load_stock_model
    from tests.models.encoders import encode
    from tests.tasks.recipe import Model, Recipe, load_stock

    recipe = Recipe.__new__(Recipe)  # its audio exists
    recipe.folder, recipe.data = folder, folder / "data"
    os.chdir(folder)
    for outputs in sorted(folder.glob("*/outputs.pth")):
        exp = outputs.parent
        model, plain = (
            Model(f"{each}/config.yaml", f"{each}/model.pth")
            for each in (exp, exp / "plain")
        )
        read = {
            "espnet_kd": load_stock_model(*model).eval(),
            "exported": load_stock_model(*plain).eval(),
            "exported, stock": load_stock(plain),
            "stock": load_stock(model),
        }
        expected = torch.load(outputs)
        found = []
        for name, each in read.items():
            pairs = zip(encode(each, recipe), expected)
            worst = max(float((one - other).abs().max()) for one, other in pairs)
            found.append(f"{name} {worst:.1e}")
        print(f"= {exp.name}: {'; '.join(found)}")


def across(*pythons: str) -> int:
    """Write in each, read in the other; returns the exit code."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")

    def run(python: str, step: str, folder: str) -> str:
        command = [str(Path(python).absolute()), __file__, step, folder]
        return subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    failed = False
    for writer, reader in (pythons, pythons[::-1]):
        with tempfile.TemporaryDirectory() as folder:
            run(writer, "write", folder)
            print(f"written by {writer}, read by {reader}:")
            for line in run(reader, "read", folder).splitlines():
                if line.startswith("= "):  # ESPnet prints, too
                    print(line)
                    failed |= max(_differences(line)) > TOLERANCE
    print("they differ" if failed else f"all within {TOLERANCE}")
    return int(failed)


def _differences(line: str) -> list[float]:
    """All but those of stock ESPnet with the original model, without this package."""
    return [float(part.split()[-1]) for part in line.split("; ")[:-1]]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1] in ("write", "read"):
        logging.disable(logging.WARNING)
        {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]).resolve())
    else:
        sys.exit(across(*sys.argv[1:3]))
