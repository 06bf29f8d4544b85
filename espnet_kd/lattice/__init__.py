"""Transducer lattice algebra: tensors in, tensors out (`nodes` draws the lattice)."""

from espnet_kd.lattice.backends import has_k2
from espnet_kd.lattice.bands import prune_ranges
from espnet_kd.lattice.functional import (
    best_path,
    nbest_paths,
    occupancy,
    sample_paths,
    total_score,
    transducer_loss,
)
from espnet_kd.lattice.lattices import Lattices
from espnet_kd.lattice.logits import FactoredLogits

__all__ = [
    "FactoredLogits",
    "Lattices",
    "best_path",
    "has_k2",
    "nbest_paths",
    "occupancy",
    "prune_ranges",
    "sample_paths",
    "total_score",
    "transducer_loss",
]
