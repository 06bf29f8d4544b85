"""Loading a trained ESPnet model: completely, or not at all.

ESPnet loads a checkpoint with `strict=False` and ignores PyTorch's return value, so a
file that does not fit silently gives a model with random weights. This package reads
every model through `whole_models`, and the initial weights of a training
(`--init_param`) through `whole_init_params`.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from espnet_kd.models.checkpoints import damage_of
from espnet_kd.models.config import TaskName, read_config, task_of
from espnet_kd.models.espnet_versions import (
    clear_shared_defaults,
    installed_version,
    named_as,
    other_name,
    warn_of_untested_version,
)

State = Mapping[str, torch.Tensor]
INFERENCE = {
    "asr": "espnet2.bin.asr_inference",
    "asr_transducer": "espnet2.bin.asr_transducer_inference",
}
_ONE_AT_A_TIME = RLock()  # a method of ESPnet's model class is replaced meanwhile


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
    looked up from the current folder, as in ESPnet: call it from the recipe folder.

    Raises:
        FileNotFoundError: the configuration, the checkpoint or a file that the
            configuration names is missing.
        ValueError: the checkpoint lacks weights of the model, or has others.
    """
    task = stock_task(task_of(config))
    with _building(config):
        model, _ = task.build_model_from_file(str(config), str(model_file), device)
    return model


def stock_task(task: TaskName) -> type:
    """ESPnet's own task class."""
    from espnet2.tasks.asr import ASRTask
    from espnet2.tasks.asr_transducer import ASRTransducerTask

    return ASRTransducerTask if task == "asr_transducer" else ASRTask


def speech2text_class(task: TaskName) -> type:
    """ESPnet's stock inference of a task."""
    return importlib.import_module(INFERENCE[task]).Speech2Text


def build_speech2text(
    config: str | Path, model_file: str | Path | None, **options: Any
) -> Any:
    """Build ESPnet's `Speech2Text` with a trained model, and the LM of its options.

    Args:
        config, model_file: as for `load_stock_model`; without a file the weights are
            random.
        options: of `Speech2Text`, for example beam_size or lm_file.

    Raises:
        FileNotFoundError, ValueError: as `load_stock_model`.
    """
    speech2text = speech2text_class(task_of(config))
    with _building(config):
        return speech2text(
            asr_train_config=str(config),
            asr_model_file=model_file and str(model_file),
            **options,
        )


@contextmanager
def _building(config: str | Path) -> Iterator[None]:
    """While active, errors for missing files name the configuration that refers to
    them."""
    from espnet_kd.models import warprnnt

    warprnnt.install()
    try:
        with whole_models():
            yield
    except FileNotFoundError as error:
        if error.filename is None:  # ours, with its own remedy
            raise
        raise missing_file(config, error.filename) from error


def missing_file(config: str | Path, name: str) -> FileNotFoundError:
    """The error for a missing file that is named in a configuration."""
    return FileNotFoundError(
        f"{config}: names {name}, which was not found from the current folder; run "
        "from the recipe folder in which the model was trained"
    )


@contextmanager
def whole_models() -> Iterator[None]:
    """While active, every model that ESPnet builds from files is loaded completely or
    refused.

    Covers `build_model_from_file` of every task, and so `Speech2Text` and its language
    model. Names of weights are translated between the versions of ESPnet.

    Raises (within):
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the weights do not fit; names the file, weights and versions.
    """
    from espnet2.tasks.abs_task import AbsTask

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
        read_weights(model_file)
        config_path = config_file or Path(model_file).parent / "config.yaml"
        config = read_config(config_path)
        with _ONE_AT_A_TIME, _naming(model_file, config_path, config.get("version")):
            with _loading_whole(may_lack=_holds_adapters_alone(config)):
                return build_stock(config_file, model_file, device)

    build = classmethod(build)
    build.loads_whole = True
    AbsTask.build_model_from_file = build
    try:
        yield
    finally:
        AbsTask.build_model_from_file = stock


def read_weights(model_file: str | Path) -> State:
    """The weights in a checkpoint, on the CPU.

    Raises:
        FileNotFoundError, ValueError: it is missing, empty, cut off, or not a file of
            weights (the checkpoint of a whole training, a pickled model).
    """
    path = Path(model_file)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; ESPnet writes for example "
            "valid.loss.ave.pth or valid.acc.ave.pth after training"
        )
    damage = damage_of(path)
    if damage is not None:
        raise ValueError(f"{path}: the file is {damage}; copy it again, or train again")
    # ESPnet's own switch for files from which torch reads only tensors.
    trusted = os.environ.get("ESPNET_ALLOW_UNSAFE_TORCH_LOAD") == "1"
    try:
        state = torch.load(path, map_location="cpu", weights_only=not trusted)
    except (
        AttributeError,
        EOFError,
        KeyError,
        RuntimeError,
        TypeError,
        pickle.UnpicklingError,
    ) as error:
        reason = f"torch cannot read it, {type(error).__name__}"
        if zipfile.is_zipfile(path) and isinstance(error, pickle.UnpicklingError):
            reason = "it contains more than tensors"
        raise _no_weights(path, reason) from error
    state = _unwrapped(state)
    if not isinstance(state, Mapping):
        raise _no_weights(path, f"it contains a {type(state).__name__}")
    if not state:
        raise _no_weights(path, "it is empty")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise _no_weights(path, f"{name} is a {type(value).__name__}")
    return state


def _unwrapped(content: Any) -> Any:
    """The weights in a file of DeepSpeed or Lightning, which ESPnet before 202609 does
    not unwrap completely."""
    for key in ("module", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return content


def _no_weights(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path}: not a model's state_dict ({reason}). Give the file used for "
        "decoding, for example valid.loss.ave.pth or 12epoch.pth: not checkpoint.pth, "
        "which holds a whole training, and not a pickled model"
    )


class WeightsDoNotFit(RuntimeError):
    """A RuntimeError, after which ESPnet tries the names of older checkpoints."""


@contextmanager
def _naming(
    model_file: str | Path, config: str | Path, trained: str | None
) -> Iterator[None]:
    try:
        yield
    except WeightsDoNotFit as error:
        raise ValueError(
            f"{model_file}: {error}. Trained with ESPnet "
            f"{trained or 'of unknown version'}, installed is {installed_version()}. "
            f"Give the checkpoint that was trained with {config}, as written by "
            "ESPnet: complete, without `module.` before the names"
        ) from error


def set_weights(
    model: torch.nn.Module, state: State, model_file: str | Path, config: str | Path
) -> None:
    """Load weights of any version of ESPnet into a model, all of them or none.

    Args:
        model_file, config: their origin, for messages.

    Raises:
        ValueError: they do not fit.
    """
    with _naming(model_file, config, read_config(config).get("version")):
        _load_whole(model, state, may_lack=False)


@contextmanager
def _loading_whole(may_lack: bool) -> Iterator[None]:
    """While active, `load_state_dict` of ESPnet's models is strict in any case.

    Args:
        may_lack: the file may lack weights, but not have unknown ones.
    """
    from espnet2.train.abs_espnet_model import AbsESPnetModel

    def load(model: torch.nn.Module, state_dict: State, strict: bool = True) -> None:
        _load_whole(model, _unwrapped(state_dict), may_lack)

    # A front end may load another ESPnet model while its model is built.
    outer = AbsESPnetModel.__dict__.get("load_state_dict")
    AbsESPnetModel.load_state_dict = load
    try:
        yield
    finally:
        if outer is None:
            del AbsESPnetModel.load_state_dict
        else:
            AbsESPnetModel.load_state_dict = outer


def _load_whole(model: torch.nn.Module, state: State, may_lack: bool) -> None:
    names = model.state_dict().keys()
    missing, unknown = _load(model, named_as(names, state))
    if may_lack:  # but nothing of the adapters themselves
        missing = [name for name in missing if _is_adapter(name)]
    # ESPnet of 2020 also saved branches that are switched off by a weight of 0.
    unused = [name for name in unknown if _is_switched_off(model, name)]
    if unused:
        logging.warning(f"Not used, as the model does not have them: {_some(unused)}")
        unknown = [name for name in unknown if name not in unused]
    faults = []
    if missing:
        faults.append(f"lacks {_some(missing)} of the model's {len(names)} weights")
    if unknown:
        faults.append(f"has {_some(unknown)} that the model does not have")
    if faults:
        raise WeightsDoNotFit(" and ".join(faults))


def _load(model: torch.nn.Module, state: State) -> tuple[list[str], list[str]]:
    """Load weights; returns the missing and the unknown names."""
    try:
        result = torch.nn.Module.load_state_dict(model, state, strict=False)
    except RuntimeError as error:  # a headline, and a line for each mismatch
        lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
        sizes = _some(lines[1:] or lines)
        raise WeightsDoNotFit(f"does not fit the model in {sizes}") from error
    return result.missing_keys, result.unexpected_keys


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} ({shown}{', ..' if len(names) > 3 else ''})"


def _is_switched_off(model: torch.nn.Module, name: str) -> bool:
    """Whether a weight belongs to a part that is None in the model."""
    part = name.partition(".")[0]
    return part in ("ctc", "decoder") and getattr(model, part, part) is None


def _is_adapter(name: str) -> bool:
    return "lora_" in name or "adapter" in name


def _holds_adapters_alone(config: Mapping[str, Any]) -> bool:
    """Whether ESPnet saved only the fine-tuned weights, and downloads the rest.

    If the rest came from `--init_param`, it is missing when the model is read.
    """
    strategy = config.get("save_strategy", "all")
    is_downloaded = not config.get("init_param")
    return bool(config.get("use_adapter")) and strategy != "all" and is_downloaded


# ------------------------------------------------------------------------ init_param


@contextmanager
def whole_init_params(load: Callable[..., None]) -> Iterator[None]:
    """While active, ESPnet's training loads all of `--init_param`, or refuses it.

    ESPnet puts the file's weights into the model's state_dict and loads that, which
    then has both names of a renamed weight: 202609 and later silently keep the model's
    own, random weight.

    Args:
        load: `load_init_param`, or a function that calls it.
    """
    import espnet2.tasks.abs_task as abs_task

    stock = abs_task.load_pretrained_model
    abs_task.load_pretrained_model = load
    try:
        yield
    finally:
        abs_task.load_pretrained_model = stock


def load_init_param(
    init_param: str,
    model: torch.nn.Module,
    ignore_init_mismatch: bool,
    map_location: str = "cpu",
) -> None:
    """Initialise weights of a model from a file of any version of ESPnet.

    As in ESPnet's `load_pretrained_model`, a part (encoder, decoder, ..) that is not in
    the file stays unchanged, with a warning; a part that is in it must be complete,
    except for additions of fine-tuning (adapters, self-conditioning).

    Args:
        init_param: <file>[:<part of the file>[:<part of the model>[:<names to leave
            out, separated by commas>]]]
        ignore_init_mismatch: leave out weights that do not fit, with a warning each.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or does not fit.
    """
    from espnet2.torch_utils.load_pretrained_model import filter_state_dict

    path, source, target, excluded = (init_param.split(":") + [""] * 3)[:4]
    try:
        part = model.get_submodule(target)
    except AttributeError as error:
        parts = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f"--init_param {init_param}: {target} is not a part of the model, which "
            f"has {parts}"
        ) from error
    inside = f"{source}." if source else ""
    state = {
        name[len(inside) :]: value
        for name, value in read_weights(path).items()
        if name.startswith(inside)
    }
    own = part.state_dict()
    state = named_as(own.keys(), state)
    left_out = {n for n in {*own, *state} if _starts_with(inside + n, excluded)}
    state = {name: value for name, value in state.items() if name not in left_out}
    if ignore_init_mismatch:
        state = filter_state_dict(own, state)
    try:
        missing, unknown = _load(part, state)
        missing = [name for name in missing if name not in left_out]
        touched = {name.partition(".")[0] for name in state}
        torn = [
            name
            for name in missing
            if name.partition(".")[0] in touched and not _is_added(name)
        ]
        if not state.keys() & own.keys():
            raise WeightsDoNotFit("has no weights of the model")
        if unknown:
            raise WeightsDoNotFit(f"has {_some(unknown)} that the model does not have")
        if torn and not ignore_init_mismatch:
            raise WeightsDoNotFit(f"lacks {_some(torn)} of the parts in it")
    except WeightsDoNotFit as error:
        raise ValueError(
            f"--init_param {init_param}: {error}. Name the parts, <file>:<part of the "
            "file>:<part of the model>, or load what fits: --ignore_init_mismatch true"
        ) from error
    if missing:
        logging.warning(
            f"--init_param {init_param}: {_some(missing)} of the model's weights are "
            "not in it and stay unchanged"
        )


def _is_added(name: str) -> bool:
    """Whether a weight was added to a part by fine-tuning: an adapter, or the layer of
    self-conditioned CTC."""
    return _is_adapter(name) or ".conditioning_layer." in f".{name}"


def _starts_with(name: str, prefixes: str) -> bool:
    """Whether a weight's name in any version starts with one of `a,b,c`."""
    names = [name, other_name(name) or name]
    return bool(prefixes) and any(
        n.startswith(tuple(prefixes.split(","))) for n in names
    )
