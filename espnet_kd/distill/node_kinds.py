"""The kinds of nodes, by the names that `kd_conf` uses; each file registers its own.

A kind of the transducer lattice registers a term, since all terms of a batch are
computed in one pass over the lattice (`lattice.LatticeReading`). Any other kind
registers its loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from espnet_kd.config.losses import NodeLossConf
from espnet_kd.losses import ClassSet, LatticeTerm, class_set

# (loss of kd_conf, Sides) -> sums over nodes (B,), and the number of nodes ().
LOSS_FUNCTIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {}
# (loss of kd_conf, LatticeTeacher, band of a pruned student or None) -> term.
TERMS: dict[str, Callable[..., LatticeTerm]] = {}

F = TypeVar("F", bound=Callable)


def loss_of(nodes: str) -> Callable[[F], F]:
    """Register the loss of a kind of nodes."""
    return _register(LOSS_FUNCTIONS, nodes)


def term_of(nodes: str) -> Callable[[F], F]:
    """Register the term of a kind of nodes of the transducer lattice."""
    return _register(TERMS, nodes)


def _register(table: dict[str, F], nodes: str) -> Callable[[F], F]:
    def register(function: F) -> F:
        table[nodes] = function
        return function

    return register


def classes_of(loss: NodeLossConf) -> ClassSet:
    """The class set that the fields of a loss describe."""
    return class_set(loss.classes, k=loss.k, tail=loss.tail)
