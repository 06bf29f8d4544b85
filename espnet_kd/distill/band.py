"""KD on a band of the transducer lattice: some rows of each frame."""

from __future__ import annotations

from torch import Tensor

from espnet_kd.config.losses import BandConf
from espnet_kd.distill.lattice import term_at
from espnet_kd.distill.lattice_teacher import LatticeTeacher
from espnet_kd.distill.node_kinds import term_of
from espnet_kd.losses import LatticeTerm


@term_of("band")
def band_term(
    loss: BandConf, teacher: LatticeTeacher, ranges: Tensor | None
) -> LatticeTerm:
    """A loss on the student's own band, or on the teacher's where it has none.

    Args:
        loss: with numbers for schedules.
        teacher: on the labels of the batch.
        ranges: (B, T, S) rows of a pruned student; None: the `loss.width` rows of each
            frame that the teacher's alignments use most.
    """
    own = of_teacher = teacher.layout.nodes
    if ranges is not None:
        own = teacher.layout.within(ranges).nodes
    else:
        of_teacher = teacher.layout.within(teacher.lattices.band(loss.width)).nodes
    return term_at(loss, teacher, own, of_teacher)
