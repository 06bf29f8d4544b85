"""Multiply-adds of an ESPnet model per second of decoded audio.

Common counters (of torch, ptflops, fvcore) give a sum for each module or operator. A
sparse model needs more: how often each weight is applied, so that zeros can be left
out. Only shapes matter, not values, so noise is used instead of speech.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from espnet_kd.compress.sparsity import MULTIPLYING
from espnet_kd.models.branches import Encoded, encode_noise, frame_layer, nodes_of_model
from espnet_kd.report.costs import LABELS_PER_SECOND, SECONDS

_MATRIX_PRODUCTS = {"matmul", "__matmul__", "bmm"}


@dataclass
class Counts:
    """Multiplications in a part of a model.

    Attributes:
        applied: how often each weight (two or more dimensions, by name) was applied: a
            weight with W values, Z of them zero, gives applied * W multiply-adds,
            applied * (W - Z) of them with a non-zero value.
        products: multiply-adds of activations with one another (attention) or with
            constants (mel filters).
    """

    applied: Counter[str] = field(default_factory=Counter)
    products: float = 0


@dataclass(frozen=True)
class Operations:
    """Counts per second of audio, of the encoder and of everything after it."""

    encoder: Counts
    decoder: Counts


def operations(
    model: nn.Module,
    sampling_rate: int,
    seconds: float = SECONDS,
    labels_per_second: float = LABELS_PER_SECOND,
) -> Operations:
    """Count the cost of greedy decoding per second, on some seconds of noise.

    After an encoder of T frames, for U labels: a transducer runs its prediction network
    on U + 1 labels and its joint network at the T + U nodes of a path. Other models run
    the attention decoder on U + 1 tokens, in one pass as in training, and the CTC layer
    on T frames, if they have them.

    Args:
        model: an ESPnet model of the task `asr` or `asr_transducer`.
        sampling_rate: of its audio, in Hz.
    """
    with counting(model) as encoder:
        encoded = encode_noise(model, round(seconds * sampling_rate))
    with counting(model) as decoder:
        _decode(model, encoded, round(seconds * labels_per_second))
    return Operations(_per_second(encoder, seconds), _per_second(decoder, seconds))


@torch.no_grad()
def _decode(model: nn.Module, encoded: Encoded, labels: int) -> None:
    encoder_out, frames = encoded
    tokens = torch.ones(1, labels + 1, dtype=torch.long, device=encoder_out.device)
    if getattr(model, "joint_network", None) is not None:
        model.decoder.set_device(encoder_out.device)
        path = (1, int(frames) + labels, -1)
        decoder_out = model.decoder(tokens)
        model.joint_network(
            encoder_out[:, :1].expand(path), decoder_out[:, :1].expand(path)
        )
        return
    if frame_layer(model) is not None:
        frame_layer(model)(encoder_out)
    if "tokens" in nodes_of_model(model):
        model.decoder(encoder_out, frames, tokens, torch.tensor([labels + 1]))


@contextmanager
def counting(model: nn.Module) -> Iterator[Counts]:
    """While active, count the linear, convolutional and recurrent layers of a model.

    Padding of a convolution counts as input. A layer whose weights are used without
    calling it (`torch.nn.MultiheadAttention`) is not counted.
    """
    counts = Counts()
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def count(module: nn.Module, inputs: tuple, output: Any) -> None:
        times = _times_applied(module, inputs, output)
        for weight in module.parameters(recurse=False):
            if weight.dim() > 1:
                counts.applied[names[id(weight)]] += times

    layers = [module for module in model.modules() if isinstance(module, MULTIPLYING)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with _Products(counts):
            yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _times_applied(module: nn.Module, inputs: tuple, output: Any) -> int:
    """Frames, positions or steps of the batch; each applies every weight once."""
    while isinstance(output, tuple):  # (output, states); a packed sequence is one too
        output = output[0]
    if isinstance(module, nn.Linear):
        return output.numel() // module.out_features
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.transposed:
            return inputs[0].numel() // module.in_channels
        return output.numel() // module.out_channels
    if isinstance(module, nn.modules.rnn.RNNCellBase):
        return output.numel() // module.hidden_size
    width = module.proj_size or module.hidden_size
    return output.numel() // (width * (2 if module.bidirectional else 1))


class _Products(TorchFunctionMode):
    """Counts explicit matrix products, outside layers."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _MATRIX_PRODUCTS:
            self.counts.products += result.numel() * args[0].size(-1)
        elif name == "scaled_dot_product_attention":
            query, key, _ = args[:3]
            self.counts.products += (query.numel() + result.numel()) * key.size(-2)
        return result


def _per_second(counts: Counts, seconds: float) -> Counts:
    applied = {name: times / seconds for name, times in counts.applied.items()}
    return Counts(Counter(applied), counts.products / seconds)
