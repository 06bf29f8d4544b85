"""KD losses: tensors in, tensors out.

A loss is a choice of nodes (where), of classes (at what resolution) and of a divergence
(how far apart); the functions named after papers are cells of that grid. On a
transducer lattice any other cell is a `LatticeTerm` of `lattice_losses`; on CTC frames
and attention tokens it is `steps_kd`.
"""

from espnet_kd.lattice.logits import FactoredLogits
from espnet_kd.losses.classes import ClassSet, Collapsed, Full, TopK, class_set
from espnet_kd.losses.dense import full_kl, topk_kl
from espnet_kd.losses.divergences import Divergence, divergence_of
from espnet_kd.losses.essence import essence_kd
from espnet_kd.losses.lattice import LatticeTerm, lattice_losses, windowed_losses
from espnet_kd.losses.mean_posterior import ensemble_logits
from espnet_kd.losses.nodes import path_mask, reduce_nodes
from espnet_kd.losses.sequences import (
    error_weights,
    full_sum_kd,
    posterior_weights,
)
from espnet_kd.losses.steps import OnlineSteps, StoredSteps, steps_kd
from espnet_kd.losses.teachers import OnlineTeacher, StoredLattice, StoredPath
from espnet_kd.losses.topk import topk_targets
from espnet_kd.losses.transducer import (
    collapsed_lattice_kd,
    full_lattice_kd,
    path_kd,
    transducer_kd,
)

__all__ = [
    "ClassSet",
    "Collapsed",
    "Divergence",
    "FactoredLogits",
    "Full",
    "LatticeTerm",
    "OnlineSteps",
    "OnlineTeacher",
    "StoredLattice",
    "StoredPath",
    "StoredSteps",
    "TopK",
    "class_set",
    "collapsed_lattice_kd",
    "divergence_of",
    "ensemble_logits",
    "error_weights",
    "essence_kd",
    "full_kl",
    "full_lattice_kd",
    "full_sum_kd",
    "lattice_losses",
    "path_kd",
    "path_mask",
    "posterior_weights",
    "reduce_nodes",
    "steps_kd",
    "topk_kl",
    "topk_targets",
    "transducer_kd",
    "windowed_losses",
]
