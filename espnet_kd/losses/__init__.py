"""KD losses: tensors in, tensors out.

A loss is a choice of nodes (where) and of classes (at what resolution); the functions
named after papers are cells of that grid. On a transducer lattice any other cell is a
`LatticeTerm` of `lattice_losses`; elsewhere it is

    reduce_nodes(<classes>_kl(student at the nodes, ...), valid, reduction)
"""

from espnet_kd.lattice.factored import FactoredLogits
from espnet_kd.losses.classes import full_kl, topk_kl
from espnet_kd.losses.ensemble import ensemble_logits
from espnet_kd.losses.essence import essence_kd, topk_targets
from espnet_kd.losses.lattice import collapsed_lattice_kd, full_lattice_kd
from espnet_kd.losses.nodes import path_mask, reduce_nodes
from espnet_kd.losses.path import path_kd
from espnet_kd.losses.sequence import (
    error_weights,
    full_sum_kd,
    posterior_weights,
)
from espnet_kd.losses.teachers import OnlineTeacher, StoredLattice, StoredPath
from espnet_kd.losses.transducer import (
    LatticeTerm,
    lattice_losses,
    transducer_kd,
    windowed_losses,
)

__all__ = [
    "FactoredLogits",
    "LatticeTerm",
    "OnlineTeacher",
    "StoredLattice",
    "StoredPath",
    "collapsed_lattice_kd",
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
    "topk_kl",
    "topk_targets",
    "transducer_kd",
    "windowed_losses",
]
