"""Transducer lattice algebra: tensors in, tensors out (`nodes` draws the lattice)."""

from espnet_kd.lattice.algebra import best_path, has_k2, occupancy, total_score
from espnet_kd.lattice.nodes import node_scores
from espnet_kd.lattice.transducer import transducer_loss

__all__ = [
    "best_path",
    "has_k2",
    "node_scores",
    "occupancy",
    "total_score",
    "transducer_loss",
]
