"""The branches of an ESPnet `asr*` model that KD reads: encoder, CTC, decoder."""

from __future__ import annotations

import torch
from torch import Tensor

Encoded = tuple[Tensor, Tensor]


def encode(model: torch.nn.Module, speech: Tensor, lengths: Tensor) -> Encoded:
    """Encoder output (B, T, D) and frames (B,) of an ESPnet `asr*` model."""
    encoder_out, encoder_lengths = model.encode(speech, lengths)
    if isinstance(encoder_out, tuple):  # with the outputs of intermediate CTC layers
        encoder_out = encoder_out[0]
    return encoder_out, encoder_lengths


def nodes_of_model(model: torch.nn.Module) -> set[str]:
    """The kinds of nodes at which a model can be compared, as named in `kd_conf`."""
    nodes = {"sequence"}
    if frame_layer(model) is not None:
        nodes.add("frames")
    if getattr(model, "joint_network", None) is not None:
        # Blanks that span several frames give another lattice.
        if getattr(model, "transducer_multi_blank_durations", None):
            nodes.remove("sequence")
        else:
            nodes.update(("lattice", "band", "path"))
    elif model.decoder is not None and hasattr(model, "criterion_att"):
        nodes.add("tokens")
    return nodes


def frame_layer(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The output layer of the CTC branch, if the model has one."""
    ctc = getattr(model, "ctc", None)
    return ctc.ctc_lo if ctc is not None else getattr(model, "ctc_lin", None)


def frame_rate(model: torch.nn.Module, sampling_rate: int) -> float:
    """Encoder frames per second, measured on noise of 10 and 20 seconds."""
    frames = [
        int(encode_noise(model, seconds * sampling_rate)[1]) for seconds in (10, 20)
    ]
    return (frames[1] - frames[0]) / 10


@torch.no_grad()
def encode_noise(model: torch.nn.Module, samples: int) -> Encoded:
    """The encoder output for noise, in evaluation mode, to measure rates and widths."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        noise = 0.1 * torch.randn(1, samples, device=device)
        return encode(model, noise, torch.tensor([samples], device=device))
    finally:
        model.train(training)
