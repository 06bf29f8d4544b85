"""The KD losses of one batch: each kind of nodes computes its own, summed here.

kd_conf.losses --> LatticeReading   band, lattice, path: one pass, `lattice.py`
               --> LOSS_FUNCTIONS   frames, tokens, sequence: one file each
kd_conf.hidden --> HiddenKD         `hidden.py`
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from espnet_kd.config.kd_conf import KDConf
from espnet_kd.config.losses import LossConf

# Imported to register their kinds of nodes.
from espnet_kd.distill import band, frames, path, sequence, tokens  # noqa: F401
from espnet_kd.distill.frame_rates import Rates
from espnet_kd.distill.hidden import HiddenKD
from espnet_kd.distill.lattice import LatticeReading
from espnet_kd.distill.node_kinds import LOSS_FUNCTIONS, TERMS
from espnet_kd.distill.outputs import Outputs
from espnet_kd.distill.sharing import Rows
from espnet_kd.distill.sides import Sides
from espnet_kd.distill.signals import Batch, Source, SpecialTokens


class Distillation:
    """The losses of `kd_conf`, bound to the source of the teachers' signals.

    Every entry of `conf.losses` names one kind of nodes, which student and teachers
    have.
    """

    def __init__(
        self,
        conf: KDConf,
        source: Source,
        rates: Rates,
        symbols: SpecialTokens,
        hidden: HiddenKD | None = None,
    ) -> None:
        self.conf = conf
        self.source = source
        self.rates = rates
        self.symbols = symbols
        self.hidden = hidden
        self.names = stats_names(conf.losses)
        self.warned: set[str] = set()

    def start(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        rows: Rows,
        utterances: Sequence[str],
        updates: int,
        is_training: bool,
    ) -> BatchKD:
        """The KD of a batch whose forward pass is about to run.

        Args:
            speech: waveforms (B, samples).
            speech_lengths: samples of each, (B,).
            rows: which of them share their audio.
            utterances: ids; may be empty.
            updates: of the student so far, for the schedules.
            is_training: False in evaluation.
        """
        batch = Batch(
            utterances,
            speech,
            speech_lengths,
            rows,
            self.rates,
            self.symbols,
            is_training,
        )
        return BatchKD(self, self.conf.at(updates), batch)


class BatchKD:
    """The KD of one batch, at the current weights and temperatures.

    Attributes:
        conf: with numbers for schedules.
        reading: reads the student's transducer lattices, while its forward pass runs.
    """

    def __init__(self, kd: Distillation, conf: KDConf, batch: Batch) -> None:
        self.kd = kd
        self.conf = conf
        self.batch = batch
        self.signals = kd.source.signals(batch)
        if self.signals is None and batch.is_training:
            raise ValueError(
                f"kd_conf: nothing is known of the teacher on {batch.utterances}; make "
                "targets for all of the training set, or drop these utterances from it"
            )
        losses = conf.losses if self.signals is not None else ()
        self.reading = LatticeReading(
            [loss for loss in losses if loss.nodes in TERMS],
            self.signals,
            kd.rates,
            kd.symbols.blank,
            conf.tolerance,
        )

    def losses(self, outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the KD losses of a batch, and each of them by its name.

        Computed in fp32 under autocast too. NaN in evaluation where nothing is known of
        the teacher, as the statistics of all batches need the same names.
        """
        kd, parts = self.kd, {}
        total = self.batch.speech.new_zeros(())
        if self.signals is None:
            names = kd.names + (kd.hidden.names if kd.hidden is not None else [])
            return total, {name: total + torch.nan for name in names}
        sides = Sides(
            outputs,
            self.signals,
            self.reading,
            kd.rates,
            kd.symbols,
            warned=kd.warned,
        )
        for name, loss in zip(kd.names, self.conf.losses):
            sums, nodes = _sums(loss, sides)
            if outputs.weights is not None and loss.nodes != "sequence":
                sums = sums * outputs.weights.to(sums.dtype)
            count = len(sums) if loss.reduction == "batch" else nodes.clamp(min=1)
            value = sums.sum() / count
            total = total + loss.weight * value
            parts[name] = value.detach()
        if kd.hidden is not None:
            value, hidden = kd.hidden(self.conf.hidden, sides)
            total, parts = total + value, {**parts, **hidden}
        return total, parts


def _sums(loss: LossConf, sides: Sides) -> tuple[Tensor, Tensor]:
    """Sums of a loss over the nodes of each utterance, and the number of nodes."""
    if loss.nodes in TERMS:
        return sides.reading.sums(loss, sides.student.lattice)
    return LOSS_FUNCTIONS[loss.nodes](loss, sides)


def stats_names(losses: Sequence[LossConf]) -> list[str]:
    """`loss_kd_<nodes>`, with their variant where several losses share the nodes."""
    nodes = [loss.nodes for loss in losses]
    names = [
        f"loss_kd_{loss.nodes}"
        + (f"_{loss.variant}" if nodes.count(loss.nodes) > 1 else "")
        for loss in losses
    ]
    return [
        name if names.count(name) == 1 else f"{name}_{index}"
        for index, name in enumerate(names)
    ]
