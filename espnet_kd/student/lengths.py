"""True encoder lengths for ESPnet's stand-alone transducer.

The convolutional input block of ESPnet's `asr_transducer` (202412, 202511) cuts the
padding mask to the length of its output instead of subsampling it. In a padded batch
the padding of every shorter utterance then counts as speech: it is attended to, enters
the loss, and a batched decoder reads words into it. A single utterance has no padding
and is right, so stock inference agrees with a model trained with true lengths.
"""

from __future__ import annotations

import logging

import torch
from espnet2.asr_transducer.encoder.blocks.conv_input import ConvInput


class TrueLengthConvInput(ConvInput):
    """`ConvInput` in which padding neither counts as speech nor leaks into it."""

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x (B, T, D), mask (B, T), True on padding -> (B, T', D'), (B, T')."""
        if mask is None:
            return super().forward(x, None)
        lengths = mask.eq(0).sum(1)
        x = x.unsqueeze(1)
        for layer in self.conv:
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.MaxPool2d)):
                # An utterance alone is followed by the layer's own (zero) padding.
                x = x.masked_fill(_beyond(lengths, x.size(2))[:, None, :, None], 0.0)
                lengths = _lengths_after(layer, lengths)
            x = layer(x)
        x = x.transpose(1, 2).flatten(2)
        if self.output is not None:
            x = self.output(x)
        return x, _beyond(lengths, x.size(1))


def _beyond(lengths: torch.Tensor, frames: int) -> torch.Tensor:
    """(B, frames), True from each utterance's end on."""
    return torch.arange(frames, device=lengths.device) >= lengths.unsqueeze(1)


def _lengths_after(
    layer: torch.nn.Conv2d | torch.nn.MaxPool2d, lengths: torch.Tensor
) -> torch.Tensor:
    """Frames that a convolution or pooling makes of `lengths` frames, (B,)."""
    kernel, stride, padding, dilation = (
        size if isinstance(size, int) else size[0]
        for size in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    )
    room = lengths + 2 * padding - dilation * (kernel - 1) - 1
    if not getattr(layer, "ceil_mode", False):
        return (room.div(stride, rounding_mode="floor") + 1).clamp(min=0)
    windows = (room + stride - 1).div(stride, rounding_mode="floor") + 1
    # PyTorch drops a last window that would start beyond the input.
    starts_outside = (windows - 1) * stride >= lengths + padding
    return (windows - starts_outside.long()).clamp(min=0)


def use_true_lengths(model: torch.nn.Module) -> bool:
    """Correct the input block of an `asr_transducer` model in place.

    Parameters and state_dict stay as they are. Returns whether anything was changed;
    models of ESPnet's `asr` task have no such block.
    """
    block = getattr(model.encoder, "embed", None)
    if type(block) is not ConvInput:
        return False
    block.__class__ = TrueLengthConvInput
    logging.info("Encoder lengths of padded batches are corrected (true_lengths).")
    return True
