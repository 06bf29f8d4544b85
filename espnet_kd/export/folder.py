"""Makes a plain ESPnet experiment folder from one that was trained with KD."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espnet_kd.compress.sparsity import prunable_weights
from espnet_kd.data.files import folder_beside, move_files, write_json
from espnet_kd.export.formats import save_compressed
from espnet_kd.export.inference import save_int8
from espnet_kd.export.names import RECORD, TABLE, path_of
from espnet_kd.models.config import read_config, task_of
from espnet_kd.models.espnet_versions import default_config, under_both_names
from espnet_kd.models.loading import load_model, missing_file, stock_task
from espnet_kd.targets.fingerprint import code_versions, hash_file

MADE_BY = "espnet_kd.bin.export"
# Fields of a configuration that inference reads, besides all `*_conf`.
_READ = ("token_list", "bpemodel", "non_linguistic_symbols")


def export_folder(
    exp: str | Path,
    model_file: str,
    output_dir: str | Path,
    formats: Sequence[str] = (),
    report: Callable[[str], object] = lambda step: None,
) -> dict[str, Any]:
    """Write a plain ESPnet folder with a model in its forms.

    It holds `config.yaml` without the KD options, the weights under the same name, the
    files that inference reads (BPE model, statistics) at the paths given in
    `config.yaml`, so that it works from the recipe folder and, wherever it is moved,
    from within itself; and `export.json`. Call it from the recipe folder.

    Args:
        exp: folder of a trained model.
        model_file: a checkpoint in it, for example valid.loss.ave.pth.
        output_dir: new, empty, or an earlier export, which is replaced; other files in
            it are kept.
        formats: any of "csr", "2:4" and "int8".
        report: called with the name of each step.

    Returns:
        The content of `export.json`.

    Raises:
        FileNotFoundError: the configuration, the checkpoint or a file named in the
            configuration is missing.
        ValueError: the folder is not ours, or a form does not suit the weights.
    """
    exp, output_dir = Path(exp), Path(output_dir)
    if Path(model_file).name != model_file:
        raise ValueError(
            f"model_file: {model_file} must be the name of a file in {exp}"
        )
    old = read_record(output_dir)
    with folder_beside(output_dir) as new:
        report("the plain folder")
        config = plain_config(read_config(exp / "config.yaml"), exp / "config.yaml")
        write_config(new / "config.yaml", config)
        weights, state = _write_weights(exp, model_file, new)
        for path in files_of(config):
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new / path)
        files = {"dense": model_file}
        for form in formats:
            report(form)
            files[form] = path_of(model_file, form).name
            _write_form(new, model_file, weights, state, form)
        record = {
            "made_by": MADE_BY,
            **code_versions(),
            "torch": torch.__version__,
            "exp": str(exp),
            "model_file": model_file,
            "model_sha256": hash_file(new / model_file),
            "forms": {
                form: {"file": name, "bytes": (new / name).stat().st_size}
                for form, name in files.items()
            },
            "files": sorted(
                str(path.relative_to(new)) for path in new.rglob("*") if path.is_file()
            ),
        }
        write_json(new / RECORD, record)
        _move(new, output_dir, old, record)
    return record


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The content of `export.json` of an earlier export; None if the folder does not
    exist or is empty.

    Raises:
        ValueError: the folder was not made by `export_folder`.
    """
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["made_by"] == MADE_BY:
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"{folder}: exists without the {RECORD} of {MADE_BY}; give another --output_dir"
    )


def plain_config(config: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """A configuration without the options added by KD to ESPnet's task.

    Args:
        path: of the configuration, to find the task.
    """
    from espnet_kd.tasks.asr import ASRKDTask
    from espnet_kd.tasks.asr_transducer import ASRTransducerKDTask

    task = task_of(path)
    ours = ASRTransducerKDTask if task == "asr_transducer" else ASRKDTask
    added = default_config(ours).keys() - default_config(stock_task(task)).keys()
    return {name: value for name, value in config.items() if name not in added}


def write_config(path: str | Path, config: Mapping[str, Any]) -> None:
    """Write a `config.yaml` in ESPnet's form."""
    from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

    text = yaml_no_alias_safe_dump(dict(config), indent=4, sort_keys=False)
    Path(path).write_text(text, encoding="utf-8")


def files_of(config: Mapping[str, Any]) -> list[str]:
    """The files other than weights that inference reads, relative to the recipe folder.

    Absolute paths are left out: they are valid from any folder of this machine.

    Raises:
        FileNotFoundError: the BPE model is missing.
    """
    bpemodel = config.get("bpemodel")
    if config.get("token_type") == "bpe" and not Path(bpemodel or "").is_file():
        raise missing_file("config.yaml", f"bpemodel: {bpemodel}")
    read = [v for k, v in config.items() if k in _READ or k.endswith("_conf")]
    return sorted({text for text in _strings(read) if _is_relative_file(text)})


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _is_relative_file(text: str) -> bool:
    path = Path(text)
    # A token may have a file's name, but a recipe's files are not in its top folder.
    inside = len(path.parts) > 1 and not path.is_absolute() and ".." not in path.parts
    return inside and path.is_file()


def _write_weights(
    exp: Path, model_file: str, folder: Path
) -> tuple[list[str], dict[str, Tensor]]:
    """Write the weights so that every version of ESPnet can read them.

    This also checks that the folder's weights and configuration fit.

    Returns:
        Names of the weights that can be pruned, and the state_dict, under the names of
        the installed version.
    """
    model = load_model(exp / "config.yaml", exp / model_file)
    state = model.state_dict()
    torch.save(under_both_names(model, state), folder / model_file)
    return list(prunable_weights(model)), state


def _write_form(
    folder: Path,
    model_file: str,
    weights: list[str],
    state: dict[str, Tensor],
    form: str,
) -> None:
    dense = folder / model_file
    if form == "int8":
        save_int8(path_of(dense, form), folder / "config.yaml", dense)
    else:
        save_compressed(path_of(dense, form), state, weights, form)


def _move(new: Path, output_dir: Path, old: dict | None, record: dict) -> None:
    """Move a folder to its destination. An earlier export is replaced file by file, as
    it may hold decodings; the record is moved last."""
    if old is None:
        if output_dir.exists():
            output_dir.rmdir()
        os.replace(new, output_dir)
        return
    move_files(new, output_dir, record["files"])
    for name in {*old["files"], TABLE} - set(record["files"]):
        (output_dir / name).unlink(missing_ok=True)
    os.replace(new / RECORD, output_dir / RECORD)
