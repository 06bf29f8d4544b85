"""What a teacher, or an ensemble of teachers, says of a batch: logits at the nodes."""

from __future__ import annotations

from typing import Sequence

import torch
from espnet2.asr_transducer.joint_network import JointNetwork
from espnet2.asr_transducer.utils import get_transducer_task_io
from torch import Tensor

from espnet_kd.losses import FactoredLogits, OnlineTeacher, ensemble_logits

Encoded = tuple[Tensor, Tensor]


def encode(model: torch.nn.Module, speech: Tensor, lengths: Tensor) -> Encoded:
    """Encoder output (B, T, D) and frames (B,) of an ESPnet `asr*` model."""
    encoder_out, encoder_lengths = model.encode(speech, lengths)
    if isinstance(encoder_out, tuple):  # intermediate CTC layers come along
        encoder_out = encoder_out[0]
    return encoder_out, encoder_lengths


def nodes_of(model: torch.nn.Module) -> set[str]:
    """Where an ESPnet model can be compared, as `kd_conf` names it."""
    nodes = {"sequence"}
    if frame_layer(model) is not None:
        nodes.add("frames")
    if getattr(model, "joint_network", None) is not None:
        # Blanks of several frames make another lattice.
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
    """What a model makes of noise, in evaluation mode, to measure rates and widths."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        noise = 0.1 * torch.randn(1, samples, device=device)
        return encode(model, noise, torch.tensor([samples], device=device))
    finally:
        model.train(training)


class SoftTeacher:
    """Teachers held outside `nn.Module` registration.

    They are never in a student's state_dict, optimiser, DDP buckets or checkpoints.
    The posterior of an ensemble is the weighted mean of its members' posteriors.

    Args:
        models: trained ESPnet models, in evaluation mode, with equal token lists.
        weights: one for each model; normalised to sum to one.
    """

    def __init__(
        self, models: Sequence[torch.nn.Module], weights: Sequence[float]
    ) -> None:
        self.models = list(models)
        self.weights = [weight / sum(weights) for weight in weights]

    def apply(self, fn) -> None:
        """Move or cast every teacher as `nn.Module._apply` does."""
        for model in self.models:
            model._apply(fn)

    def encode(self, speech: Tensor, lengths: Tensor) -> list[Encoded]:
        """One encoder pass of each teacher over speech (B, samples)."""
        with torch.no_grad():
            return [encode(model, speech, lengths) for model in self.models]

    def frames(self, encoded: Sequence[Encoded]) -> list[Tensor]:
        """CTC logits (B, T, V) of each teacher."""
        with torch.no_grad():
            return [
                frame_layer(model)(encoder_out)
                for model, (encoder_out, _) in zip(self.models, encoded)
            ]

    def lattice(
        self, encoded: Sequence[Encoded], labels: Tensor, label_lengths: Tensor
    ) -> OnlineTeacher:
        """The teachers' transducer lattices of labels (B, U), (B, T, U+1, V)."""
        with torch.no_grad():
            lattices = [
                joint_logits(model, encoder_out, labels, label_lengths)
                for model, (encoder_out, _) in zip(self.models, encoded)
            ]
        return OnlineTeacher(lattices, self.weights)

    def tokens(
        self, encoded: Sequence[Encoded], labels_in: Tensor, lengths: Tensor
    ) -> list[Tensor]:
        """Attention logits (B, L, V) of each after labels_in (B, L): <sos> y_1 .."""
        with torch.no_grad():
            return [
                model.decoder(encoder_out, encoder_lengths, labels_in, lengths)[0]
                for model, (encoder_out, encoder_lengths) in zip(self.models, encoded)
            ]

    def mean(self, logits: Sequence[Tensor], temperature: float) -> Tensor:
        """Logits z of the ensemble: softmax(z / temperature) is the mean posterior.

        Teachers whose encoders differ by a frame are cut to the shortest.
        """
        frames = min(each.size(1) for each in logits)
        return ensemble_logits(
            [each[:, :frames].float() for each in logits], self.weights, temperature
        )


def joint_logits(
    model: torch.nn.Module, encoder_out: Tensor, labels: Tensor, label_lengths: Tensor
) -> FactoredLogits:
    """Joint network output (B, T, U+1, V) for labels (B, U), not written out."""
    steps = torch.arange(labels.size(1), device=labels.device)
    padding = steps >= label_lengths.unsqueeze(1)
    decoder_in, *_ = get_transducer_task_io(
        labels.long().masked_fill(padding, model.ignore_id),
        label_lengths,
        ignore_id=model.ignore_id,
        blank_id=getattr(model, "blank_id", 0),
    )
    model.decoder.set_device(encoder_out.device)
    return factored_joint(model.joint_network, encoder_out, model.decoder(decoder_in))


def factored_joint(
    joint: JointNetwork, encoder_out: Tensor, decoder_out: Tensor
) -> FactoredLogits:
    """What ESPnet's joint network makes of (B, T, D) and (B, U+1, D)."""
    return FactoredLogits(
        joint.lin_enc(encoder_out),
        joint.lin_dec(decoder_out),
        joint.lin_out.weight,
        joint.lin_out.bias,
        joint.joint_activation,
    )
