"""Frames output by a named layer of an encoder, kept by hooks."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor


class Layer:
    """The output of a layer of a model for the last encoded batch.

    Args:
        model: an ESPnet `asr*` model.
        name: of a sub-module.

    Raises:
        ValueError: the model has no such module; similar names are suggested.
    """

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        modules = dict(model.named_modules())
        if name not in modules:
            near = difflib.get_close_matches(name, filter(None, modules), cutoff=0.5)
            proposals = f"; similar names: {near}" if near else ""
            raise ValueError(
                f"{name!r} is not a module of {type(model).__name__}{proposals}"
            )
        self.name = name
        self.frames = self.encoded = self.lengths = None
        modules[name].register_forward_hook(self._keep_frames)
        model.encoder.register_forward_hook(self._keep_lengths)

    # A hook that returned something would replace the output.
    def _keep_frames(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self.frames = frames_of(output)

    def _keep_lengths(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self.encoded, self.lengths = frames_of(output), output[1]

    def take(self) -> tuple[Tensor, Tensor]:
        """Frames (B, T, D) and their lengths (B,), which are then released.

        Raises:
            ValueError: the layer did not run in the pass.
        """
        frames, lengths = self.frames, self.lengths
        self.frames = self.encoded = self.lengths = None
        if frames is None:
            raise ValueError(
                f"{self.name!r} did not run when a batch was encoded; name a layer of "
                "the encoder, and do not drop layers (layer_drop_rate, "
                "blockdrop_rate)"
            )
        return frames, lengths

    def width(self) -> int:
        """Width D of the frames of a batch that was just encoded.

        Raises:
            ValueError: the layer does not output frames at the rate of the encoder.
        """
        encoded = self.encoded
        frames, _ = self.take()
        if frames.dim() != 3 or frames.shape[:2] != encoded.shape[:2]:
            raise ValueError(
                f"{self.name!r} outputs {tuple(frames.shape)}, the encoder "
                f"{tuple(encoded.shape)} (utterances, frames, width); name a layer "
                "after the subsampling"
            )
        return frames.size(-1)


def frames_of(output: Any) -> Tensor:
    """The frames in a layer's output: x, (x, mask), ((x, positions), mask), ..."""
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output
