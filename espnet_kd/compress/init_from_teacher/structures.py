"""ESPnet's modules whose layers have outputs or inputs of more than one factor.

Heads x units, halves of a gated unit, branches end to end, channels x frequencies; and
what may not be cut: tokens and features.
"""

from __future__ import annotations

import re
from typing import Callable, Optional, Tuple

from torch import nn

from espnet_kd.compress.init_from_teacher.axes import Axis, Factor, axis

# Outputs (dimension 0) and inputs (dimension 1) of a layer, None: one row of units.
Ends = Tuple[Optional[Axis], Optional[Axis]]


def directions(rnn: nn.Module, hidden: int) -> Axis:
    return axis(Factor(2, "directions"), hidden) if rnn.bidirectional else axis(hidden)


def _halves(size: int) -> Axis:
    return axis(Factor(2, "halves"), size // 2)


def _frequencies(channels: int, flat: int) -> Axis:
    """Channels x frequencies, as the output of a 2-D convolution is flattened."""
    return axis(channels, Factor(flat // channels, "frequencies"))


def _layers(module: nn.Module, kind: type, prefix: str) -> dict[str, nn.Module]:
    """Layers of a kind whose path in `module` is `prefix` or below."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, kind) and name.split(".")[0] == prefix
    }


def _plain(module: nn.Module) -> dict[str, Ends]:
    return {}


def _attention(module: nn.Module) -> dict[str, Ends]:
    number = module.h if hasattr(module, "h") else module.num_heads
    heads = axis(number, module.d_k)
    ends: dict[str, Ends] = {f"linear_{x}": (heads, None) for x in "qkv"}
    ends["linear_out"] = (None, heads)
    if hasattr(module, "linear_pos"):
        # A simplified score has one output for each head.
        full = module.linear_pos.out_features == number * module.d_k
        ends["linear_pos"] = (heads if full else axis(number), None)
    return ends


def _block(module: nn.Module) -> dict[str, Ends]:
    """A layer of an encoder or decoder: branches are joined end to end."""
    ends: dict[str, Ends] = {}
    for name, layer in module.named_modules():
        if name.startswith(("concat_linear", "merge_proj")):
            if isinstance(layer, nn.Linear) and (
                layer.in_features == 2 * layer.out_features
            ):
                ends[name] = (None, _halves(layer.in_features))
        elif name == "depthwise_conv_fusion":
            ends[name] = (_halves(layer.out_channels), None)
        elif name == "channel_proj1.0":
            ends[name] = (_halves(layer.out_features), None)
    return ends


def _gated_conv(module: nn.Module) -> dict[str, Ends]:
    return {"pointwise_conv1": (_halves(module.pointwise_conv1.out_channels), None)}


def _joined_conv(module: nn.Module) -> dict[str, Ends]:
    return {"conv": (_halves(module.conv.out_channels), None)}


def _subsampling(module: nn.Module) -> dict[str, Ends]:
    """Convolutions, then a linear layer over channels x frequencies."""
    ends: dict[str, Ends] = {}
    for name, layer in _layers(module, nn.Conv1d, "conv").items():
        if name == "conv.0":
            ends[name] = (None, axis(Factor(layer.in_channels, "features")))
    flat = {**_layers(module, nn.Linear, "out"), **_layers(module, nn.Linear, "output")}
    convs = list(_layers(module, nn.Conv2d, "conv").values())
    for name, layer in flat.items() if convs else ():
        flattened = _frequencies(convs[-1].out_channels, layer.in_features)
        ends[name] = (None, flattened)
    return ends


def _encoder(module: nn.Module) -> dict[str, Ends]:
    ends: dict[str, Ends] = {}
    if isinstance(module.embed, (nn.Linear, nn.Sequential)):
        for name, layer in _layers(module, nn.Linear, "embed").items():
            ends[name] = (None, axis(Factor(layer.in_features, "features")))
    layer = getattr(module, "conditioning_layer", None)
    if layer is not None:
        ends["conditioning_layer"] = (None, axis(Factor(layer.in_features, "tokens")))
    return ends


def _transducer_encoder(module: nn.Module) -> dict[str, Ends]:
    """Where the first block is a convolution, it reads channels x frequencies."""
    conv_input = getattr(module, "embed", None)
    if getattr(conv_input, "output", conv_input) is not None:
        return {}
    *_, conv = _layers(conv_input, nn.Conv2d, "conv").values()
    flat = _frequencies(conv.out_channels, conv_input.output_size)
    return {f"encoders.blocks.0.{name}": (None, flat) for name in ("conv", "out_pos")}


def _recurrent_encoder(module: nn.Module) -> dict[str, Ends]:
    """RNN and RNNP: the input is features, projections read both directions."""
    ends: dict[str, Ends] = {}
    for name, rnn in module.named_children():
        if isinstance(rnn, nn.RNNBase):
            projection = "l_last"
            if name != "nbrnn":
                projection = "bt" + re.findall(r"\d+$", name)[0]
            ends[projection] = (None, directions(rnn, rnn.hidden_size))
            if projection in ("l_last", "bt0"):
                ends[name] = (None, axis(Factor(rnn.input_size, "features")))
    return ends


def _recurrent_decoder(module: nn.Module) -> dict[str, Ends]:
    """RNN with attention: it reads the embedding and, end to end, the context."""
    if not hasattr(module, "att_list"):
        return {}
    hidden = module.dunits
    context = module.decoder[0].input_size - hidden
    joined = (*axis(hidden), *axis(context))
    tokens = axis(Factor(module.odim, "tokens"))
    residual = module.context_residual
    return {
        "decoder.0": (None, joined),
        "output": (tokens, joined if residual else None),
    }


def _tokens(*names: str) -> Callable[[nn.Module], dict[str, Ends]]:
    """A module whose layers of these names give one output for each token."""

    def ends(module: nn.Module) -> dict[str, Ends]:
        layers = {name: getattr(module, name, None) for name in names}
        return {
            name: (axis(Factor(layer.out_features, "tokens")), None)
            for name, layer in layers.items()
            if layer is not None
        }

    return ends


# ESPnet's modules (of asr and asr_transducer) whose structure is known.
KNOWN: dict[str, Callable[[nn.Module], dict[str, Ends]]] = {
    **dict.fromkeys(
        (
            "PositionwiseFeedForward MultiLayeredConv1d Conv1dLinear Conv1d "
            "ConvolutionalSpatialGatingUnit MultiBlocks RMSNorm BasicNorm ScaleNorm "
            "ScaledPositionalEncoding VGG2L TransducerDecoder StatelessDecoder "
            "AttDot AttAdd AttLoc AttCov AttCovLoc AttForward"
        ).split(),
        _plain,
    ),
    **dict.fromkeys(
        (
            "MultiHeadedAttention RelPositionMultiHeadedAttention "
            "LegacyRelPositionMultiHeadedAttention"
        ).split(),
        _attention,
    ),
    **dict.fromkeys(
        (
            "EncoderLayer DecoderLayer BranchformerEncoderLayer "
            "EBranchformerEncoderLayer ConvolutionalGatingMLP "
            "Conformer Branchformer EBranchformer"
        ).split(),
        _block,
    ),
    **dict.fromkeys(("ConvolutionModule", "ConformerConvolution"), _gated_conv),
    **dict.fromkeys(
        (
            "Conv1dSubsampling1 Conv1dSubsampling2 Conv1dSubsampling3 "
            "Conv2dSubsampling Conv2dSubsampling1 Conv2dSubsampling2 "
            "Conv2dSubsampling6 Conv2dSubsampling8 ConvInput"
        ).split(),
        _subsampling,
    ),
    **dict.fromkeys(
        (
            "TransformerEncoder ConformerEncoder BranchformerEncoder "
            "EBranchformerEncoder"
        ).split(),
        _encoder,
    ),
    **dict.fromkeys(("RNN", "RNNP"), _recurrent_encoder),
    "DepthwiseConvolution": _joined_conv,
    "Encoder": _transducer_encoder,
    "RNNDecoder": _recurrent_decoder,
    "TransformerDecoder": _tokens("output_layer"),
    "JointNetwork": _tokens("lin_out"),
    "CTC": _tokens("ctc_lo"),
    "ESPnetASRTransducerModel": _tokens("ctc_lin", "lm_lin", "am_proj", "lm_proj"),
}
