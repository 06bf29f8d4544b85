"""One encoder pass for the hypotheses of an utterance.

The K hypotheses of an utterance are K entries of a KD training set with the same audio
(`espnet_kd.targets.kd_set`). Entries of a batch with identical waveforms go through an
encoder once. Augmentation on the fly makes them differ; then they are not shared.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from espnet_kd.lattice.masks import length_mask

PROBES = 64  # samples of each waveform by which candidates for equality are found


class Rows(NamedTuple):
    """The M distinct rows of a batch of B, and which of them each row is."""

    first: Tensor  # (M,) int64, ascending; the first row of each kind
    index: Tensor  # (B,) int64; row b equals row first[index[b]]

    @property
    def are_shared(self) -> bool:
        """Whether a row occurs twice."""
        return len(self.first) < len(self.index)

    def take(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """The distinct rows of tensors (B, ...)."""
        if not self.are_shared:
            return batch
        return tuple(each[self.first] for each in batch)

    def expand(self, made: Any) -> Any:
        """Tensors (M, ...), possibly in tuples and lists, as tensors (B, ...)."""
        if not self.are_shared:
            return made
        if isinstance(made, Tensor):
            return made[self.index]
        if isinstance(made, (tuple, list)):
            return type(made)(self.expand(each) for each in made)
        return made


@torch.no_grad()
def distinct_rows(speech: Tensor, lengths: Tensor) -> Rows:
    """Find the rows with equal lengths and equal samples.

    Args:
        speech: waveforms (B, S) or (B, S, channels); padding is not compared.
        lengths: samples of each, (B,).

    Returns:
        Rows such that speech[first][index] equals speech up to the lengths.
        Synchronises with the device once, and again if rows may be equal.
    """
    lengths = lengths.to(speech.device)
    itself = torch.arange(len(speech), device=speech.device)
    # Comparing all pairs of rows would cost B times as much: a few samples name one
    # candidate for each row, which is then compared sample by sample.
    step = -(-speech.size(1) // PROBES) or 1
    valid = length_mask(lengths, speech.size(1))
    probes = _masked(speech[:, ::step], valid[:, ::step])
    probes = torch.cat([probes, lengths.to(probes).unsqueeze(1)], dim=1)
    alike = (probes.unsqueeze(0) == probes.unsqueeze(1)).all(-1)
    candidate = alike.long().argmax(1)
    if torch.equal(candidate, itself):
        return Rows(itself, itself)
    samples = _masked(speech, valid)
    is_same = (samples == samples[candidate]).all(1)
    is_same &= lengths == lengths[candidate]
    leader = torch.where(is_same, candidate, itself)
    is_first = leader == itself
    first = is_first.nonzero().squeeze(1)
    return Rows(first, (is_first.cumsum(0) - 1)[leader])


def _masked(speech: Tensor, valid: Tensor) -> Tensor:
    """(B, S) or (B, S, channels) -> (B, ...), zero in the padding."""
    valid = valid.view(*valid.shape, *(1,) * (speech.dim() - 2))
    return speech.masked_fill(~valid, 0).flatten(1)


def lists_of_rows(index: Tensor) -> tuple[Tensor, Tensor]:
    """The positions of each utterance's hypotheses in a batch.

    Args:
        index: (B,) the utterance, 0 .. M-1, of each entry; `Rows.index`.

    Returns:
        rows (M, K), the entries of each utterance in their order, 0 in the padding, so
        that scores[rows] are the lists of scores (B,); and their lengths (M,).
    """
    lengths = torch.bincount(index)
    order = torch.sort(index, stable=True).indices
    grouped = index[order]
    starts = lengths.cumsum(0) - lengths
    place = torch.arange(len(index), device=index.device) - starts[grouped]
    longest = int(lengths.max()) if len(lengths) else 0
    rows = index.new_zeros(len(lengths), longest)
    rows[grouped, place] = order
    return rows, lengths
