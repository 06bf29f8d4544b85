"""True lengths: an utterance in a padded batch is encoded as if alone.

In ESPnet it is not. Padding that counts as speech enters the loss, is distilled, and
leads a batched decoder to output words for it:

* `asr_transducer`, before 202611: the convolutional input cuts the padding mask to the
  length of its output instead of subsampling it, so all utterances are as long as the
  longest. In all versions: the pooling of a `vgg_like` input reads padding.
** `asr`, before 202610: the subsampling layers leave one to four frames of padding in
  every utterance but the longest, and the convolutions of conformer and branchformer
  layers read padding that is not zero. In all versions, so does a feed-forward layer of
  convolutions (`positionwise_layer_type: conv1d`).
* STFT, in all versions: the end of the longest utterance is mirrored, the others are
  followed by zeros.

A single utterance has no padding and is correct, so stock inference agrees with a model
trained with true lengths. Parameters and state_dict do not change. Code that is correct
in the installed version is left alone. A warning names an encoder that is not known to
be correct in ESPnet or here (`vgg_rnn`, contextual blocks, pre-trained ones, the
conformer's default `rel_pos_type: legacy`, ...).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from espnet2.asr.encoder.branchformer_encoder import BranchformerEncoder
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from espnet2.asr.encoder.rnn_encoder import RNNEncoder
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from espnet2.asr_transducer.encoder.blocks.conv1d import Conv1d as Conv1dBlock
from espnet2.asr_transducer.encoder.blocks.conv_input import ConvInput
from espnet2.asr_transducer.encoder.encoder import Encoder as TransducerEncoder
from espnet2.layers.stft import Stft
from torch import Tensor
from torch.nn import Conv1d, Conv2d, MaxPool2d

from espnet_kd.models.espnet_versions import (
    legacy,
    masks_conv_input,
    masks_convolutions,
    masks_subsampling,
)

subsampling = legacy("nets.pytorch_backend.transformer.subsampling")


class TrueLengthStft(Stft):
    """`Stft` that mirrors the end of every utterance."""

    def forward(
        self, input: Tensor, ilens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """input (B, samples) or (B, samples, channels), ilens (B,)."""
        if ilens is None or not self.center or bool((ilens == input.size(1)).all()):
            return super().forward(input, ilens)
        output, olens = super().forward(_mirror(input, ilens, self.n_fft // 2), ilens)
        return output[:, : int(olens.max())], olens


def _mirror(x: Tensor, lengths: Tensor, count: int) -> Tensor:
    """x (B, T, ...) with `count` values after each end, mirrored at the last one."""
    last = lengths.unsqueeze(1) - 1
    index = torch.arange(x.size(1) + count, device=x.device)
    index = torch.where(index > last, 2 * last - index, index).clamp(min=0)
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), index]


class TrueLengthConvInput(ConvInput):
    """`ConvInput` in which padding neither counts as speech nor leaks into it."""

    def forward(self, x: Tensor, mask: Tensor | None = None):
        """x (B, T, D), mask (B, T), True on padding -> (B, T', D'), (B, T')."""
        if mask is None:
            return super().forward(x, None)
        lengths = mask.eq(0).sum(1)
        x = x.unsqueeze(1)
        for layer in self.conv:
            if isinstance(layer, (Conv2d, MaxPool2d)):
                # A single utterance is followed by the layer's own (zero) padding.
                x = x.masked_fill(_beyond(lengths, x.size(2))[:, None, :, None], 0.0)
                lengths = _lengths_after(layer, lengths)
            x = layer(x)
        x = x.transpose(1, 2).flatten(2)
        if self.output is not None:
            x = self.output(x)
        return x, _beyond(lengths, x.size(1))


class TrueLengthSubsampling:
    """Mixed in before a subsampling layer of the `asr` task (no padding of its own)."""

    def forward(self, x: Tensor, x_mask: Tensor | None, *args):
        """x (B, T, D), x_mask (B, 1, T), True on speech -> x', x_mask' (B, 1, T')."""
        x, short_mask = super().forward(x, x_mask, *args)
        if x_mask is None:
            return x, None
        lengths = x_mask.squeeze(1).sum(1)
        for layer in self.conv:
            if isinstance(layer, (Conv1d, Conv2d)):
                lengths = _lengths_after(layer, lengths)
        return x, ~_beyond(lengths, short_mask.size(-1)).unsqueeze(1)


SUBSAMPLINGS = {
    stock: type(f"TrueLength{name}", (TrueLengthSubsampling, stock), {})
    for name, stock in vars(subsampling).items()
    if name.startswith(("Conv1dSubsampling", "Conv2dSubsampling"))
}
# Classes that are wrong in the installed version, always or with some options.
CORRECTED = {
    Stft: TrueLengthStft,
    ConvInput: TrueLengthConvInput,
    **({} if masks_subsampling() else SUBSAMPLINGS),
}
_multi_layer_conv = legacy("nets.pytorch_backend.transformer.multi_layer_conv")
FEED_FORWARD = (_multi_layer_conv.MultiLayeredConv1d, _multi_layer_conv.Conv1dLinear)
CONVOLVING_ENCODERS = (BranchformerEncoder, ConformerEncoder, EBranchformerEncoder)
# Once corrected, these encode a batch like its utterances one by one.
RIGHT_ENCODERS = (
    *CONVOLVING_ENCODERS,
    RNNEncoder,
    TransformerEncoder,
    TransducerEncoder,
)


class TrueLengthConv1d(Conv1d):
    """Convolution over the frames of an encoder layer, in which padding is zero."""

    speech: Tensor | None = None  # (B, 1, T) of the current batch

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T)."""
        if self.speech is not None:
            x = x.masked_fill(~self.speech, 0.0)
        return super().forward(x)


def _hand_down_mask(layer: torch.nn.Module, args: tuple) -> None:
    for module in layer.modules():
        if isinstance(module, TrueLengthConv1d):
            module.speech = args[1]


def _beyond(lengths: Tensor, frames: int) -> Tensor:
    """(B, frames), True beyond each utterance's end."""
    return torch.arange(frames, device=lengths.device) >= lengths.unsqueeze(1)


def _lengths_after(layer: Conv1d | Conv2d | MaxPool2d, lengths: Tensor) -> Tensor:
    """Output frames (B,) of a convolution or pooling for `lengths` frames."""
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
    """Correct the frontend and the encoder of an ESPnet model in place.

    Returns whether anything was changed. A warning names an encoder whose output still
    depends on padding.
    """
    changed = [_correct(module) for module in model.modules()]
    encoder = model.encoder
    if isinstance(encoder, CONVOLVING_ENCODERS):
        for layer in encoder.encoders:
            corrected = [_correct_convolution(m) for m in _unmasked(layer)]
            if any(corrected):
                layer.register_forward_pre_hook(_hand_down_mask)
            changed += corrected
    if any(changed):
        logging.info("Padded batches are encoded with true lengths (true_lengths).")
    wrong = uncorrected(encoder)
    if wrong is not None:
        logging.warning(
            f"true_lengths: {wrong} is not among the corrected encoders; its output "
            "for the utterances of a batch may depend on padding"
        )
    return any(changed)


def uncorrected(encoder: torch.nn.Module) -> str | None:
    """The class or part of an encoder whose output depends, or may depend, on padding;
    None if all is known to be correct."""
    if type(encoder) not in RIGHT_ENCODERS:  # a subclass may be wrong
        return type(encoder).__name__
    for module in encoder.modules():
        if type(module).__name__ == "LegacyRelPositionMultiHeadedAttention":
            return f"rel_pos_type legacy of {type(encoder).__name__}"
    blocks = any(isinstance(module, Conv1dBlock) for module in encoder.modules())
    if blocks and not masks_conv_input():
        return f"block_type conv1d of {type(encoder).__name__}"
    return None


def _unmasked(layer: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Modules of an encoder layer to which ESPnet passes padding."""
    for module in layer.modules():
        if not masks_convolutions() or isinstance(module, FEED_FORWARD):
            yield from module.modules()


def _correct(module: torch.nn.Module) -> bool:
    if type(module) not in CORRECTED:
        return False
    if type(module) is ConvInput and masks_conv_input() and not module.vgg_like:
        return False
    module.__class__ = CORRECTED[type(module)]
    return True


def _correct_convolution(module: torch.nn.Module) -> bool:
    if type(module) is not Conv1d or module.kernel_size[0] == 1:
        return False
    module.__class__ = TrueLengthConv1d
    return True
