"""What the dimensions of a model's tensors are made of, so that they can be cut.

Known are layers of PyTorch inside the ESPnet modules of
`espnet_kd.compress.init_from_teacher.structures`. Any other tensor has a fixed shape.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from espnet_kd.compress.init_from_teacher.axes import (
    Axes,
    Axis,
    Factor,
    axis,
    axis_size,
)
from espnet_kd.compress.init_from_teacher.structures import KNOWN, Ends, directions

UNKNOWN = "sizes (of unknown structure)"
GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}
FEATURES = {"LogMel": "features", "GlobalMVN": "features"}
_CHAINS = ("Sequential", "ModuleList", "MultiSequential")
_NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layouts(model: nn.Module) -> dict[str, Axes]:
    """Axes of each tensor of `model.state_dict()`, by name."""
    modules = dict(model.named_modules())
    ends: dict[str, Ends] = {}
    for path, module in modules.items():
        if _is_known(module):
            for name, pair in KNOWN[type(module).__name__](module).items():
                # The outer module, which comes first, knows more.
                ends.setdefault(f"{path}.{name}" if path else name, pair)
    result = {}
    for name, tensor in model.state_dict().items():
        path, _, own_name = name.rpartition(".")
        module, axes = modules[path], None
        if _is_known(module):
            axes = tuple(axis(size) for size in tensor.shape)
        elif _is_known(modules[_owner(path, modules)]):
            axes = _layer_axes(module, own_name, tensor, *ends.get(path, (None, None)))
        if axes is None or tuple(map(axis_size, axes)) != tuple(tensor.shape):
            fixed = FEATURES.get(type(module).__name__, UNKNOWN)
            axes = tuple(axis(Factor(size, fixed)) for size in tensor.shape)
        result[name] = axes
    return result


def _is_known(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ in KNOWN and kind.__module__.split(".")[0].startswith("espnet")


def _owner(path: str, modules: dict[str, nn.Module]) -> str:
    """The module that gives a layer its meaning: a chain of layers gives none."""
    path = path.rpartition(".")[0]
    while path and type(modules[path]).__name__ in _CHAINS:
        path = path.rpartition(".")[0]
    return path


def _layer_axes(
    layer: nn.Module, name: str, tensor: Tensor, out: Axis | None, into: Axis | None
) -> Axes | None:
    """Axes of a tensor of a PyTorch layer, None where they are not known."""
    if isinstance(layer, _NORMS):
        return tuple(axis(size) for size in tensor.shape)
    if isinstance(layer, nn.Embedding):
        return axis(Factor(layer.num_embeddings, "tokens")), axis(layer.embedding_dim)
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        return _recurrent_axes(layer, name, into)
    if isinstance(layer, nn.Linear):
        out, into = out or axis(layer.out_features), into or axis(layer.in_features)
        return (out, into)[: tensor.dim()]
    if isinstance(layer, _CONVS):
        out, into = out or axis(layer.out_channels), into or axis(layer.in_channels)
        if layer.groups == layer.in_channels == layer.out_channels > 1:
            into = axis(Factor(1, "channels of a group"))
        elif layer.groups > 1:
            return None
        kernel = [axis(Factor(size, "kernel size")) for size in layer.kernel_size]
        return (out, into, *kernel)[: tensor.dim()]
    return None


def _recurrent_axes(
    layer: nn.RNNBase | nn.RNNCellBase, name: str, into: Axis | None
) -> Axes | None:
    """Axes of `weight_ih_l0`, `bias_hh_l1_reverse`, `weight_ih` ..."""
    match = re.fullmatch(r"(weight|bias)_(ih|hh)(?:_l(\d+))?(?:_reverse)?", name)
    if match is None or getattr(layer, "proj_size", 0):
        return None
    gates = GATES.get(type(layer).__name__, 1)
    out, hidden = axis(Factor(gates, "gates"), layer.hidden_size), layer.hidden_size
    if match[1] == "bias":
        return (out,)
    if match[2] == "hh":
        return out, axis(hidden)
    if int(match[3] or 0) == 0:
        return out, into or axis(layer.input_size)
    return out, directions(layer, hidden)
