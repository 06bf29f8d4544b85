"""Logits of a teacher or an ensemble: CTC frames, attention tokens, lattices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from espnet_kd.losses import OnlineTeacher, ensemble_logits
from espnet_kd.models.branches import Encoded, encode, frame_layer
from espnet_kd.models.joint import joint_logits


class TeacherEnsemble:
    """Teachers held outside `nn.Module` registration.

    They are never in a student's state_dict, optimiser, DDP buckets or checkpoints.
    The posterior of an ensemble is the weighted mean of its members' posteriors.

    Args:
        models: trained ESPnet models in evaluation mode with equal token lists, by the
            names used in messages.
        weights: one per model; normalised to sum to one.
    """

    def __init__(
        self, models: Mapping[str, torch.nn.Module], weights: Sequence[float]
    ) -> None:
        self.names = list(models)
        self.models = list(models.values())
        self.weights = [weight / sum(weights) for weight in weights]

    def named(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Name and model of each teacher."""
        return zip(self.names, self.models)

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

        If the teachers' encoders differ by a frame, all are cut to the shortest.
        """
        frames = min(each.size(1) for each in logits)
        return ensemble_logits(
            [each[:, :frames].float() for each in logits], self.weights, temperature
        )
