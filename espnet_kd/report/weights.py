"""Sparsity of a model's layers, and its savings in bytes and operations."""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from espnet_kd.compress.sparsity import prunable_weights
from espnet_kd.models.config import read_config, sampling_rate_of
from espnet_kd.models.espnet_versions import named_as
from espnet_kd.models.loading import load_model
from espnet_kd.report.costs import Layer, MultiplyAdds, Weights, total_of
from espnet_kd.report.operations import Counts, Operations, operations
from espnet_kd.report.size import distinct, is_buffer, read_tensors, stored_bytes


def stored_weights(tensors: dict[str, Tensor]) -> Weights:
    """The zeros in tensors from `read_tensors`, without building a model.

    Layers are all floating point tensors of two or more dimensions.
    """
    tensors = distinct(tensors)
    layers = [
        name
        for name, tensor in tensors.items()
        if tensor.dim() > 1 and not is_buffer(name)
    ]
    return weights_of(tensors, layers, None)


def model_weights(path: str | Path) -> Weights:
    """`stored_weights`, with more details if the file (or link) has a config.yaml.

    Then the layers are those subject to pruning, and multiply-adds are counted. A
    warning names a model that cannot be built or run.

    Raises:
        ValueError: the file is not a model's state_dict.
    """
    tensors = read_tensors(path)
    config = Path(path).parent / "config.yaml"
    if not config.exists():
        return stored_weights(tensors)
    model = _try(f"{config}: building the model", _build, config, path)
    if model is None:
        return stored_weights(tensors)
    counted = _try(f"{config}: running the model on noise", _count, config, model)
    tensors = named_as(model.state_dict().keys(), tensors)
    return weights_of(tensors, prunable_weights(model), counted)


def _build(config: Path, path: str | Path) -> nn.Module:
    with redirect_stdout(sys.stderr):  # ESPnet prints when imported
        return load_model(config, path)


def _count(config: Path, model: nn.Module) -> Operations:
    return operations(model, sampling_rate_of(read_config(config)))


def compressed_bytes(tensor: Tensor) -> int:
    """One bit per value and the non-zero values, or dense if smaller."""
    values = int(tensor.count_nonzero()) * tensor.element_size()
    return min(
        tensor.numel() * tensor.element_size(), (tensor.numel() + 7) // 8 + values
    )


def weights_of(
    tensors: dict[str, Tensor], names: Iterable[str], counted: Operations | None
) -> Weights:
    """Combine stored tensors, the choice of layers, and counts."""
    layers = [_layer(name, tensors[name], counted) for name in names]
    values = sum(layer.values for layer in layers)
    size = stored_bytes(tensors)
    saved = sum(layer.bytes - layer.compressed_bytes for layer in layers)
    costs = {}
    if counted is not None:
        encoder, decoder = (
            total_of([_cost(part.applied, tensors), _products(part)])
            for part in (counted.encoder, counted.decoder)
        )
        other = counted.encoder.applied + counted.decoder.applied
        for layer in layers:
            other.pop(layer.name, None)
        costs = dict(
            encoder=encoder,
            decoder=decoder,
            products=total_of(map(_products, (counted.encoder, counted.decoder))),
            other=_cost(other, tensors),
            total=total_of([encoder, decoder]),
        )
    return Weights(
        layers=layers,
        sparsity=sum(layer.zeros for layer in layers) / values if values else 0.0,
        bytes=size,
        compressed_bytes=size - saved,
        **costs,
    )


def _layer(name: str, tensor: Tensor, counted: Operations | None) -> Layer:
    zeros = tensor.numel() - int(tensor.count_nonzero())
    cost = None
    if counted is not None:
        times = counted.encoder.applied[name] + counted.decoder.applied[name]
        cost = _cost({name: times}, {name: tensor})
    return Layer(
        name=name,
        shape=list(tensor.shape),
        zeros=zeros,
        sparsity=zeros / tensor.numel(),
        bytes=tensor.numel() * tensor.element_size(),
        compressed_bytes=compressed_bytes(tensor),
        multiply_adds=cost,
    )


def _cost(applied: Mapping[str, float], tensors: Mapping[str, Tensor]) -> MultiplyAdds:
    return MultiplyAdds(
        sum(times * tensors[name].numel() for name, times in applied.items()),
        sum(
            times * int(tensors[name].count_nonzero())
            for name, times in applied.items()
        ),
    )


def _products(counts: Counts) -> MultiplyAdds:
    return MultiplyAdds(counts.products, counts.products)


def _try(task: str, function: Callable, *args: Any) -> Any:
    """The result of a function; None and a warning if ESPnet fails in any way."""
    try:
        return function(*args)
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 400)
        logging.warning(f"{task} failed, multiply-adds are left out ({reason})")
        return None
