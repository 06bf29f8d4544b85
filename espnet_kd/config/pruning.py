"""`kd_conf.pruning`: a student that becomes sparse during training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from espnet_kd.config.checks import block_sides
from espnet_kd.config.fields import Choice, Form, Integer, Number, Section, option


def _pattern(name: str, value: Any) -> str:
    block_sides(value)
    return value


def _patterns(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(each, str) for each in value
    ):
        raise ValueError(f"{name}: {value!r} is not a list of patterns")
    return tuple(value)


NAMES = Form("list of patterns of names, as in a shell", _patterns)


@dataclass(frozen=True)
class PruningConf(Section):
    """How sparse a student becomes, and when.

    Updates are steps of the optimiser, counted from the start of training.
    """

    sparsity: float = option(
        Number(minimum=0), "Share of the chosen weights that are zero at the end."
    )
    end: int = option(Integer(1), "Update after which the masks no longer change.")
    start: int = option(Integer(0), "Update after which weights are first pruned.", 0)
    every: int = option(Integer(1), "Updates after which masks are chosen again.", 100)
    initial_sparsity: float = option(
        Number(minimum=0),
        "Share of zeros after the update `start`.",
        0.0,
        experimental=True,
    )
    pattern: str = option(
        Form('unstructured, a block such as 1x16, or "2:4"', _pattern),
        """`unstructured`, a block of outputs x inputs such as `1x16`, or `2:4` (two of
        four neighbours along the inputs; sparsity 0.5 at most; in quotes).""",
        "unstructured",
    )
    ranking: str = option(
        Choice(("layer", "global")),
        """Weights are compared within each `layer` (weight matrix), so that all become
        equally sparse, or across all of them (`global`).""",
        "layer",
        experimental=True,
    )
    parameters: tuple[str, ...] = option(
        NAMES,
        "Weights of linear, convolutional and recurrent layers that are pruned.",
        ("*",),
        experimental=True,
    )
    exclude: tuple[str, ...] = option(NAMES, "Weights that are not pruned.", ())
    others: tuple[str, ...] = option(
        NAMES,
        "Other parameters (embeddings, biases, norms) that are pruned too.",
        (),
        experimental=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        most = 0.5 if block_sides(self.pattern) is None else 1.0
        if self.sparsity > most or (self.sparsity == 1 and most == 1):
            raise ValueError(
                f"sparsity: {self.sparsity} must be a share of the weights "
                + ("of at most 0.5" if most < 1 else "below 1")
                + f" with pattern: {self.pattern}"
            )
        if self.initial_sparsity > self.sparsity:
            raise ValueError(
                f"initial_sparsity: {self.initial_sparsity} is above sparsity: "
                f"{self.sparsity}; pruning only makes a student sparser"
            )
        if self.end < self.start:
            raise ValueError(f"end: {self.end} is before start: {self.start}")

    def is_due(self, updates: int) -> bool:
        """Whether masks are chosen after this update."""
        if updates == self.end:
            return True
        is_within = self.start <= updates < self.end
        return is_within and (updates - self.start) % self.every == 0

    def left(self, updates: int) -> float:
        """Share of the schedule that remains, from 1 to 0."""
        if updates >= self.end:
            return 0.0
        if updates <= self.start:
            return 1.0
        return (self.end - updates) / (self.end - self.start)

    def sparsity_at(self, updates: int) -> float:
        """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, equation 1 of the paper,
        at the last t at which masks were chosen; 0 before `start`."""
        if updates < self.start:
            return 0.0
        if updates < self.end:
            updates -= (updates - self.start) % self.every
        fading = self.left(updates) ** 3
        return self.sparsity + (self.initial_sparsity - self.sparsity) * fading
