"""Loading a trained ESPnet model: whole, or not at all.

ESPnet loads a checkpoint with `strict=False` and drops what PyTorch returns, so that a
file that does not fit gives a model with random weights and no message. Every model
that this package reads goes through `whole_models`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet_kd.models.config import task_of
from espnet_kd.models.files import damage_of
from espnet_kd.models.versions import (
    clear_shared_defaults,
    installed_version,
    named_as,
    warn_of_untested_version,
)

# What torch.load and ESPnet raise for a file that holds something else.
UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    RuntimeError,
    TypeError,
    pickle.UnpicklingError,
)


def load_model(
    config: str | Path, model_file: str | Path, device: str = "cpu"
) -> torch.nn.Module:
    """`load_stock_model` with true lengths, in evaluation mode, without gradients."""
    from espnet_kd.models.lengths import use_true_lengths

    model = load_stock_model(config, model_file, device)
    use_true_lengths(model)
    return model.eval().requires_grad_(False)


def load_stock_model(
    config: str | Path, model_file: str | Path, device: str = "cpu"
) -> torch.nn.Module:
    """Build a trained ESPnet model.

    The token list, the BPE model and the statistics named in the configuration are
    looked up from the current folder, as ESPnet does: call it from the recipe folder.

    Raises:
        FileNotFoundError: the configuration, the checkpoint or a file that the
            configuration names is missing.
        ValueError: the checkpoint lacks weights of the model, or holds others.
    """
    from espnet2.tasks.asr import ASRTask
    from espnet2.tasks.asr_transducer import ASRTransducerTask

    from espnet_kd import standin

    standin.install()
    task = ASRTransducerTask if task_of(config) == "asr_transducer" else ASRTask
    with whole_models(), names_of_missing_files(config):
        model, _ = task.build_model_from_file(str(config), str(model_file), device)
    return model


@contextmanager
def names_of_missing_files(config: str | Path) -> Iterator[None]:
    """Says of a file that ESPnet did not find which configuration asked for it."""
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is None:  # says what to do already
            raise
        raise FileNotFoundError(
            f"{config}: it names {error.filename}, which is not found from the current "
            "folder; run from the recipe folder in which the model was trained"
        ) from error


@contextmanager
def whole_models() -> Iterator[None]:
    """Within it, all that ESPnet builds from files is loaded whole or refused.

    It covers `build_model_from_file` of every task and thereby `Speech2Text` with its
    language model. Names of weights are translated between the versions of ESPnet.

    Raises (within):
        FileNotFoundError: there is no such checkpoint.
        ValueError: names the file, weights and versions.
    """
    from espnet2.tasks.abs_task import AbsTask
    from espnet2.train.abs_espnet_model import AbsESPnetModel

    stock = AbsTask.__dict__["build_model_from_file"]
    if getattr(stock, "loads_whole", False):  # within another whole_models()
        yield
        return

    def build(cls, config_file=None, model_file=None, device="cpu"):
        warn_of_untested_version()
        clear_shared_defaults()
        build_stock = stock.__get__(None, cls)
        if model_file is None:
            return build_stock(config_file, None, device)
        check_file(model_file)
        AbsESPnetModel.load_state_dict = _load_whole
        try:
            return build_stock(config_file, model_file, device)
        except UNREADABLE as error:
            config = config_file or Path(model_file).parent / "config.yaml"
            raise ValueError(_refusal(model_file, config, error)) from error
        finally:
            del AbsESPnetModel.load_state_dict

    build = classmethod(build)
    build.loads_whole = True
    AbsTask.build_model_from_file = build
    try:
        yield
    finally:
        AbsTask.build_model_from_file = stock


def check_file(model_file: str | Path) -> None:
    """Refuse a checkpoint that is missing, empty, cut off, or one of a whole training.

    Raises:
        FileNotFoundError, ValueError: with the remedy.
    """
    path = Path(model_file)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; ESPnet writes e.g. "
            "valid.loss.ave.pth or valid.acc.ave.pth after training"
        )
    damage = damage_of(path)
    if damage is not None:
        raise ValueError(f"{path}: the file is {damage}; copy it anew, or train again")


class WeightsDoNotFit(RuntimeError):
    """A RuntimeError, after which ESPnet tries the names of older checkpoints."""


def _load_whole(
    model: torch.nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """`load_state_dict` that is strict though ESPnet asks it not to be."""
    wanted = model.state_dict().keys()
    state = named_as(wanted, state_dict)
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"lacks {_some(missing)} of the model's {len(wanted)} weights")
        if unknown:
            parts.append(f"holds {_some(unknown)} that the model does not have")
        raise WeightsDoNotFit(" and ".join(parts))
    return torch.nn.Module.load_state_dict(model, state)


def _some(names: list[str]) -> str:
    shown = ", ".join(map(str, names[:3]))
    return f"{len(names)} ({shown}{', ..' if len(names) > 3 else ''})"


def _refusal(model_file: str | Path, config: str | Path, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, WeightsDoNotFit):
        reason = f"cannot be read as weights of {config} ({reason[:600]})"
    trained = yaml.safe_load(Path(config).read_text(encoding="utf-8")).get("version")
    return (
        f"{model_file}: {reason}. Trained with ESPnet {trained or 'of unknown version'}"
        f", installed is {installed_version()}. Give the checkpoint that belongs to "
        f"{config}, e.g. valid.acc.ave.pth, as ESPnet wrote it: not checkpoint.pth, no "
        "`module.` before the names, no part left out"
    )
