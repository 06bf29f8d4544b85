"""The outputs of one forward pass of a student: a record, without any KD."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from espnet_kd.distill.sharing import Rows
from espnet_kd.lattice.logits import Logits


@dataclass
class Frames:
    """CTC logits (B, T, V), frames (B,), labels, packed or (B, U), and their (B,)."""

    logits: Tensor
    lengths: Tensor
    targets: Tensor
    label_lengths: Tensor


@dataclass
class Tokens:
    """Attention logits (B, L, V) and their targets (B, L): y_1 .. y_U <eos> padding."""

    logits: Tensor
    targets: Tensor


@dataclass
class Lattice:
    """Joint network's logits (B, T, U+1, V) of labels (B, U), frames (B,), labels (B,).

    A pruned student adds the rows (B, T, S) that it reads, and its topology.
    """

    logits: Logits
    labels: Tensor
    frames: Tensor
    label_lengths: Tensor
    ranges: Tensor | None = None
    topology: str = "regular"


@dataclass
class Outputs:
    """The outputs of one batch; None where the student has no such branch.

    Attributes:
        rows: which utterances share their audio.
        weights: of the utterances as targets, (B,); None: all 1.
        frames, tokens, lattice: filled while ESPnet's forward pass runs.
    """

    rows: Rows
    weights: Tensor | None = None
    frames: Frames | None = None
    tokens: Tokens | None = None
    lattice: Lattice | None = None
