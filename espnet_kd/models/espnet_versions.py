"""Differences between ESPnet's versions 202412 to 202611, in this module only.

* 202609 moved `espnet.*` to `espnet2.legacy.*`.
* 202609 renamed the weights of convolutional subsampling in task `asr`.
** 202610 decodes batches of utterances in `asr_inference`, and masks padding in the
  subsampling and convolutions of task `asr`; 202611 in `asr_transducer`'s input.
* All of them share a default argument between the encoders of `asr_transducer`, and
  write sizes into it.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
from collections import OrderedDict
from collections.abc import Container, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

TESTED = ("202412", "202511", "202611")


def installed_version() -> str:
    """The version of the imported ESPnet, for example "202611".

    A checkout on PYTHONPATH takes precedence over an installed ESPnet, but then reports
    the installed one's version as its own.
    """
    folder = Path(find_spec("espnet2").origin).parent
    if not is_checkout(folder):
        return distribution("espnet").version
    for name in ("version.txt", "espnet/version.txt"):
        if (folder.parent / name).is_file():
            return (folder.parent / name).read_text(encoding="utf-8").strip()
    return "of unknown version"


def is_checkout(folder: Path) -> bool:
    """Whether a folder espnet2/ is not part of an installed package, or of an editable
    one (`pip install -e`)."""
    try:
        installed = distribution("espnet").locate_file("espnet2")
    except PackageNotFoundError:
        return True
    return Path(installed).resolve() != folder.resolve()


@lru_cache(maxsize=None)  # once per process
def warn_of_untested_version() -> None:
    """Warn if ESPnet is newer than the newest tested version."""
    installed = installed_version()
    number = re.match(r"\d{6}", installed)
    if number and number[0] > TESTED[-1]:
        logging.warning(
            f"ESPnet {installed} is newer than {TESTED[-1]}, the newest tested with "
            "espnet_kd; compare a first run, or install espnet=="
            f"{TESTED[-1]}"
        )


def legacy(name: str) -> ModuleType:
    """ESPnet1's module `name`, e.g. "nets.pytorch_backend.transformer.repeat"."""
    package = "espnet2.legacy" if find_spec("espnet2.legacy") else "espnet"
    return importlib.import_module(f"{package}.{name}")


def default_config(task: type) -> dict[str, Any]:
    """All options of an ESPnet task with their defaults.

    `get_default_config` parses the command line of the running process, whatever it is;
    one of our options could be taken for an abbreviation of ESPnet's.
    """
    words, sys.argv = sys.argv, sys.argv[:1]
    try:
        return task.get_default_config()
    finally:
        sys.argv = words


# ----------------------------------------------------------------- padding of batches


def masks_subsampling() -> bool:
    """Whether the subsampling of task `asr` counts each utterance's own frames."""
    return hasattr(
        legacy("nets.pytorch_backend.transformer.subsampling"), "_subsample_mask"
    )


def masks_convolutions() -> bool:
    """Whether convolutions of conformer and branchformer layers mask padding."""
    return hasattr(
        legacy("nets.pytorch_backend.conformer.convolution"), "mask_padded_frames"
    )


def masks_conv_input() -> bool:
    """Whether the input and convolution blocks of `asr_transducer` count each
    utterance's own frames."""
    from espnet2.asr_transducer.encoder.blocks.conv_input import ConvInput

    return hasattr(ConvInput, "get_output_lengths")


# ---------------------------------------------------------------------------- decoding


def decodes_batches() -> bool:
    """Whether `asr_inference` decodes several utterances at once."""
    from espnet2.bin.asr_inference import Speech2Text

    return hasattr(Speech2Text, "batch_decode")


# ------------------------------------------------------------------ names of weights

# Within a subsampling module, before 202609 and since: `out` was Sequential(Linear,
# positional encoding). A quantised layer has other tensors than weight and bias.
# `Conv2dSubsampling8` and the modules without positional encoding stayed as they were.
_RENAMED_MODULES = re.compile(r"Conv(1dSubsampling[123]|2dSubsampling[126]?)")
_RENAMED = tuple(
    (re.compile(rf"(?<![^.]){re.escape(old)}(?![^.])"), new)
    for old, new in (
        ("out.0", "out"),
        ("out.1", "pos_enc"),
        ("pos_enc", "out.1"),
        ("out", "out.0"),
    )
)


def other_name(name: str) -> str | None:
    """The name of a weight of a subsampling module in the other versions of ESPnet.

    "encoder.embed.out.0.weight" <-> "encoder.embed.out.weight"; None for a name that is
    the same in all versions. A layer of another module may also be called `out`; to
    distinguish them takes a model, see `other_names`.
    """
    for pattern, replacement in _RENAMED:
        renamed, count = pattern.subn(replacement, name, count=1)
        if count:
            return renamed
    return None


def named_as(wanted: Container[str], state: Mapping[str, Any]) -> dict[str, Any]:
    """A state_dict under a model's names in the installed version.

    A file may hold both names of a weight, as written by `espnet_kd.bin.export`; the
    result holds one.

    Args:
        wanted: names in a model's state_dict, or in a part of it.
        state: content of a file of any version.
    """
    others = {name: other_name(name) for name in state if name not in wanted}
    moved = {name: other for name, other in others.items() if other in wanted}
    named = OrderedDict((n, value) for n, value in state.items() if n not in moved)
    for name, other in moved.items():
        named.setdefault(other, state[name])
    # Versions of modules, without which quantised ones cannot be read.
    modules = getattr(state, "_metadata", None)
    if modules is not None:
        renamed = {other_name(path): modules[path] for path in modules if moved}
        named._metadata = {**modules, **renamed}
    return named


def other_names(model: nn.Module) -> dict[str, str]:
    """For a model's weights that ESPnet renamed, the name in the other versions."""
    renamed = tuple(
        f"{path}.{part}."
        for path, module in model.named_modules()
        if _is_renamed(type(module))
        for part in ("out", "pos_enc")
    )
    return {
        name: other_name(name)
        for name in model.state_dict()
        if renamed and name.startswith(renamed)
    }


def under_both_names(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A model's state_dict, readable by every version: renamed weights have both names.

    `torch.save` stores the values of such a weight only once.

    Args:
        model: identifies the weights of subsampling modules.
        state: its tensors under the names of the installed version.
    """
    others = other_names(model)
    return {**state, **{others[name]: state[name] for name in others}}


def _is_renamed(kind: type) -> bool:
    """True for subclasses too, for example with true lengths."""
    names = [each.__name__ for each in kind.__mro__]
    return any(_RENAMED_MODULES.fullmatch(name) for name in names)


# ---------------------------------------------------------------- mutable defaults


def clear_shared_defaults() -> None:
    """Empty the default arguments that ESPnet shares between models and writes into.

    The encoder of `asr_transducer` has `input_conf: Dict = {}` and stores the first
    model's sizes in it; every later model of the process without `input_conf` would get
    those sizes. Call this before a model is built.
    """
    from espnet2.asr_transducer.encoder.encoder import Encoder

    for parameter in inspect.signature(Encoder.__init__).parameters.values():
        if isinstance(parameter.default, dict):
            parameter.default.clear()
