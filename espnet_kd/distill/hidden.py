"""KD between layers of the encoders of student and teacher.

Hooks keep the frames that the named layers make in the one encoder pass that training
needs anyway. Where the widths differ the student's frames are projected (FitNets,
Romero et al. 2015; TutorNet, Yoon et al. 2021).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import Tensor

from espnet_kd.config.hidden import HiddenConf
from espnet_kd.distill.rates import slow_down
from espnet_kd.distill.sharing import Rows
from espnet_kd.lattice.nodes import length_mask, upcast
from espnet_kd.models.branches import encode_noise


def hidden_kd(student: Tensor, teacher: Tensor, lengths: Tensor, loss: str) -> Tensor:
    """Distance of each utterance's frames, (B,): sums over frames.

    Args:
        student, teacher: (B, T, D) of equal width; anything may stand in the padding.
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
    """Student's width to teacher's; trained with the student, but no part of it.

    Optimiser and DDP see its parameters, `state_dict` does not, so that stock ESPnet
    resumes, averages and decodes the student. `espnet_kd.tasks.trainer.KDOptimizer`
    keeps them in the state of the optimiser.
    """

    def _save_to_state_dict(self, *args, **kwargs) -> None:
        pass

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        pass


class Layer:
    """What a layer of a model made of the last batch that was encoded.

    Args:
        model: an ESPnet `asr*` model.
        name: of a sub-module.

    Raises:
        ValueError: the model has no such module; near names are proposed.
    """

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        modules = dict(model.named_modules())
        if name not in modules:
            near = difflib.get_close_matches(name, filter(None, modules), cutoff=0.5)
            proposals = f"; near names: {near}" if near else ""
            raise ValueError(
                f"{name!r} is no module of {type(model).__name__}{proposals}"
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
        """Frames (B, T, D) and their lengths (B,), which are then forgotten.

        Raises:
            ValueError: the layer was left out of the pass.
        """
        frames, lengths = self.frames, self.lengths
        self.frames = self.encoded = self.lengths = None
        if frames is None:
            raise ValueError(
                f"{self.name!r} made nothing when a batch was encoded; name a layer of "
                "the encoder, and let no layers be dropped (layer_drop_rate, "
                "blockdrop_rate)"
            )
        return frames, lengths

    def width(self) -> int:
        """Width D of the frames of a batch that was just encoded.

        Raises:
            ValueError: the layer makes no frames at the rate of the encoder.
        """
        encoded = self.encoded
        frames, _ = self.take()
        if frames.dim() != 3 or frames.shape[:2] != encoded.shape[:2]:
            raise ValueError(
                f"{self.name!r} makes {tuple(frames.shape)} where the encoder makes "
                f"{tuple(encoded.shape)} (utterances, frames, width); name a layer "
                "after the subsampling"
            )
        return frames.size(-1)


def frames_of(output: Any) -> Tensor:
    """The frames in what a layer returns: x, (x, mask), ((x, positions), mask), ..."""
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output


@dataclass
class Pair:
    """A layer of the student, and the layer of a teacher that it is to resemble."""

    student: Layer
    teacher: Layer
    projection: torch.nn.Module  # Projection, or Identity where the widths are equal
    strides: tuple[int, int] = (1, 1)  # frames of each that make one at the common rate

    def loss(self, kind: str, rate: str) -> tuple[Tensor, Tensor]:
        """Sums over frames, and frames of each distinct utterance, (M,) both."""
        student, lengths = slow_down(*self.student.take(), self.strides[0], rate)
        teacher, others = slow_down(*self.teacher.take(), self.strides[1], rate)
        frames = min(student.size(1), teacher.size(1))
        lengths = torch.minimum(lengths.to(others), others).clamp(max=frames)
        projected = self.projection(upcast(student[:, :frames]))
        return hidden_kd(projected, teacher[:, :frames], lengths, kind), lengths


class HiddenKD:
    """What `kd_conf.hidden` asks for.

    Attributes:
        names: of the losses in the statistics.
        projections: to be registered with the student (None: there are none).
    """

    def __init__(self, pairs: Sequence[Pair], rate: str) -> None:
        self.pairs = pairs
        self.rate = rate
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
        self, confs: Sequence[HiddenConf], rows: Rows, weights: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses of the batch just encoded, and each by its name.

        Args:
            confs: of the pairs, with the weights that hold now.
            rows: which entries of the batch shared their encoder pass.
            weights: of the entries, (B,), if they have any.
        """
        total, parts = 0.0, {}
        for name, pair, conf in zip(self.names, self.pairs, confs):
            sums, frames = rows.expand(pair.loss(conf.loss, self.rate))
            if weights is not None:
                sums = sums * weights.to(sums.dtype)
            value = sums.sum() / frames.sum().clamp(min=1)
            total = total + conf.weight * value
            parts[name] = value.detach()
        return total, parts


def make_hidden_kd(
    confs: Sequence[HiddenConf],
    rate: str,
    student: torch.nn.Module,
    teachers: dict[str, torch.nn.Module],
    strides: tuple[int, Sequence[int]],
    sampling_rate: int,
) -> HiddenKD:
    """Hook the layers that `kd_conf.hidden` names, and measure their widths.

    Args:
        confs: entries of `kd_conf.hidden`.
        rate: how the faster side is slowed down, `kd_conf.rate`.
        student: ESPnet `asr*` model.
        teachers: models by the name used in messages.
        strides: of the student and of each teacher, to the common frame rate.
        sampling_rate: of the audio, Hz.

    Raises:
        ValueError: a module or teacher does not exist or makes no frames; names the
            field.
    """
    pairs = []
    for number, conf in enumerate(confs):
        where = f"kd_conf.hidden[{number}]"
        if conf.teacher_index >= len(teachers):
            raise ValueError(
                f"{where}.teacher_index: {conf.teacher_index}, but the last of the "
                f"{len(teachers)} teachers is {len(teachers) - 1}"
            )
        teacher = list(teachers.values())[conf.teacher_index]
        layers, widths = [], []
        for side, model in (("student", student), ("teacher", teacher)):
            try:
                layers.append(Layer(model, getattr(conf, side)))
                encode_noise(model, sampling_rate)
                widths.append(layers[-1].width())
            except ValueError as error:
                raise ValueError(f"{where}.{side}: {error}") from error
        projection = (
            Projection(*widths) if widths[0] != widths[1] else torch.nn.Identity()
        )
        both = (strides[0], strides[1][conf.teacher_index])
        pairs.append(Pair(*layers, projection, both))
    return HiddenKD(pairs, rate)
