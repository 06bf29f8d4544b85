"""Names of the files that an export writes."""

from __future__ import annotations

from pathlib import Path

INFIXES = {"csr": "csr", "2:4": "2to4", "int8": "int8"}
RECORD = "export.json"  # content of the folder; marks a folder of ours
TABLE = "export.md"


def path_of(model_file: str | Path, form: str) -> Path:
    """x/valid.loss.ave.pth -> x/valid.loss.ave.csr.pth, .2to4.pth or .int8.pth."""
    path = Path(model_file)
    return path.with_name(f"{path.stem}.{INFIXES[form]}{path.suffix}")


def form_of(path: str | Path) -> str:
    """ "csr", "2:4", "int8" or "dense", from the name of a file."""
    infix = Path(path).stem.rpartition(".")[2]
    return {infix: form for form, infix in INFIXES.items()}.get(infix, "dense")
