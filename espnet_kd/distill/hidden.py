"""KD between layers of the encoders of student and teacher.

Hooks keep the frames that the named layers output in the one encoder pass that training
needs anyway. Where the widths differ the student's frames are projected (FitNets,
Romero et al. 2015; TutorNet, Yoon et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_kd.config.hidden import HiddenConf
from espnet_kd.distill.frame_rates import Rates
from espnet_kd.distill.sides import Sides
from espnet_kd.distill.signals import Signals, Source, known
from espnet_kd.lattice.masks import length_mask, upcast
from espnet_kd.models.branches import encode_noise
from espnet_kd.models.layers import Layer


def hidden_kd(student: Tensor, teacher: Tensor, lengths: Tensor, loss: str) -> Tensor:
    """Distance of each utterance's frames, (B,): sums over frames.

    Args:
        student, teacher: (B, T, D) of equal width; anything in the padding.
        lengths: (B,) frames.
        loss: "mse" (mean over D of the squared difference) or "cosine" (1 - cosine).
    """
    valid = length_mask(lengths, student.size(1)).unsqueeze(-1)
    student, teacher = (
        upcast(x).masked_fill(~valid, 0.0) for x in (student, teacher.detach())
    )
    if loss == "mse":
        return (student - teacher).square().mean(-1).sum(1)
    cosine = torch.nn.functional.cosine_similarity(student, teacher, dim=-1)
    return (1 - cosine).masked_fill(~valid.squeeze(-1), 0.0).sum(1)


class Projection(torch.nn.Linear):
    """Student's width to teacher's; trained with the student, but not part of it.

    Optimiser and DDP see its parameters, `state_dict` does not, so that stock ESPnet
    resumes, averages and decodes the student. `espnet_kd.tasks.trainer.KDOptimizer`
    keeps them in the state of the optimiser.
    """

    def _save_to_state_dict(self, *args, **kwargs) -> None:
        pass

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        pass


@dataclass
class Pair:
    """A layer of the student, and the layer of a teacher that it should match."""

    student: Layer
    teacher: tuple[int, str]  # which teacher, which layer; as `Signals.hidden` takes it
    projection: torch.nn.Module  # Projection, or Identity where the widths are equal

    def loss(self, kind: str, signals: Signals, rates: Rates) -> tuple[Tensor, Tensor]:
        """Sums over frames, and frames of each distinct utterance, (M,) both."""
        student, lengths = rates.slow_student(*self.student.take())
        teacher, others = known(signals.hidden(*self.teacher), "hidden")
        frames = min(student.size(1), teacher.size(1))
        lengths = torch.minimum(lengths.to(others), others).clamp(max=frames)
        projected = self.projection(upcast(student[:, :frames]))
        return hidden_kd(projected, teacher[:, :frames], lengths, kind), lengths


class HiddenKD:
    """The losses of `kd_conf.hidden`.

    Attributes:
        names: of the losses in the statistics.
        projections: to be registered with the student (None: there are none).
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        several = len(pairs) > 1
        self.names = [
            f"loss_kd_hidden_{index}" if several else "loss_kd_hidden"
            for index in range(len(pairs))
        ]
        trained = [
            pair.projection for pair in pairs if isinstance(pair.projection, Projection)
        ]
        self.projections = torch.nn.ModuleList(trained) if trained else None

    def __call__(
        self, confs: Sequence[HiddenConf], sides: Sides
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses of a batch, and each of them by its name.

        Args:
            confs: of the pairs, with the current weights.
            sides: the batch that was just encoded.
        """
        total, parts = 0.0, {}
        rows, weights = sides.student.rows, sides.student.weights
        for name, pair, conf in zip(self.names, self.pairs, confs):
            loss = pair.loss(conf.loss, sides.teacher, sides.rates)
            sums, frames = rows.expand(loss)
            if weights is not None:
                sums = sums * weights.to(sums.dtype)
            value = sums.sum() / frames.sum().clamp(min=1)
            total = total + conf.weight * value
            parts[name] = value.detach()
        return total, parts


def make_hidden_kd(
    confs: Sequence[HiddenConf],
    student: torch.nn.Module,
    source: Source,
    sampling_rate: int,
) -> HiddenKD:
    """Keep what the layers named in `kd_conf.hidden` output, and measure their widths.

    Args:
        confs: entries of `kd_conf.hidden`.
        student: ESPnet `asr*` model.
        source: where the teachers' frames come from.
        sampling_rate: of the audio, Hz.

    Raises:
        ValueError: a module or teacher does not exist, or a module outputs no frames;
            names the field.
    """
    pairs = []
    for number, conf in enumerate(confs):
        where, last = f"kd_conf.hidden[{number}]", len(source.teachers) - 1
        if conf.teacher_index > last:
            raise ValueError(
                f"{where}.teacher_index: {conf.teacher_index}, but the last of the "
                f"{last + 1} teachers is {last}"
            )
        with _naming(f"{where}.student"):
            layer = Layer(student, conf.student)
            encode_noise(student, sampling_rate)
            width = layer.width()
        with _naming(f"{where}.teacher"):
            others = source.watch(conf.teacher_index, conf.teacher, sampling_rate)
        projection = (
            Projection(width, others) if width != others else torch.nn.Identity()
        )
        pairs.append(Pair(layer, (conf.teacher_index, conf.teacher), projection))
    return HiddenKD(pairs)


@contextmanager
def _naming(field: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
