"""Transducer lattice algebra: tensors in, tensors out (`nodes` draws the lattice)."""

from espnet_kd.lattice.algebra import has_k2, occupancy, total_score
from espnet_kd.lattice.factored import FactoredLogits
from espnet_kd.lattice.paths import best_path, nbest_paths, sample_paths
from espnet_kd.lattice.pruning import prune_ranges
from espnet_kd.lattice.transducer import transducer_loss

__all__ = [
    "FactoredLogits",
    "best_path",
    "has_k2",
    "nbest_paths",
    "occupancy",
    "prune_ranges",
    "sample_paths",
    "total_score",
    "transducer_loss",
]
