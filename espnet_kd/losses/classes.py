"""At what resolution student and teacher are compared at a node.

    Full         all V classes
    TopK         the teacher's k best classes, renormalised, or with the rest as one
    Collapsed    {next label, blank, rest} of a lattice node

A class set queries the teacher at some nodes, and returns what must be read from the
student there: all classes (`AllClasses`), or a few and the rest
(`KeptClasses`), which is much cheaper on a lattice. It serves every kind of nodes and
every divergence. A new one is a class here and a line in `CLASSES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Union

import torch
from torch import Tensor

from espnet_kd.lattice.masks import LOG_ZERO
from espnet_kd.lattice.nodes import Nodes
from espnet_kd.losses.divergences import Divergence
from espnet_kd.losses.teachers import Teacher
from espnet_kd.losses.topk import TAILS, with_tail, without_repeats


class Question(NamedTuple):
    """N nodes at which student and teacher are compared."""

    nodes: Nodes  # as the teacher numbers them
    arcs: Tensor  # (N, 2) classes of the next label and of blank
    emits: Tensor  # (N,) bool; False: no label leaves the node, `arcs` has blank twice
    blank: int
    num_classes: int  # V
    temperature: float


class AllClasses(NamedTuple):
    """All classes are compared; the nodes are read in chunks."""

    log_probs: Callable[[Nodes], Tensor]  # the teacher's (n, V) at some of its nodes


class KeptClasses(NamedTuple):
    """K classes of each node and the rest are compared."""

    ids: Tensor  # (N, K); a class that occurs twice in a row counts once
    # The student's log-probabilities (N, K+1), the rest last -> those of the teacher
    # and of the student over the same classes, both (N, C)
    pair: Callable[[Tensor], tuple[Tensor, Tensor]]


Answer = Union[AllClasses, KeptClasses]


@dataclass(frozen=True)
class ClassSet(ABC):
    """A resolution; frozen, so that it can be a constant and a key."""

    @property
    def leaves_classes_out(self) -> bool:
        """Whether classes that the student has get no mass from the teacher."""
        return False

    @abstractmethod
    def ask(self, teacher: Teacher, about: Question) -> Answer:
        """Query the teacher at nodes."""


@dataclass(frozen=True)
class Full(ClassSet):
    """All V classes."""

    def ask(self, teacher: Teacher, about: Question) -> AllClasses:
        return AllClasses(partial(teacher.log_probs, temperature=about.temperature))


@dataclass(frozen=True)
class TopK(ClassSet):
    """The teacher's best classes (Z. Yang 2019).

    Attributes:
        k: classes, blank among them where the nodes have one; at most V are taken.
            Stored targets keep their own classes.
        tail: "bucket" makes the others one class on both sides, "renormalize" divides
            the k probabilities of the teacher by their sum.

    Raises:
        ValueError: k is below 1, or an unknown tail.
    """

    k: int = 8
    tail: str = "bucket"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k: {self.k} classes; keep at least 1")
        if self.tail not in TAILS:
            raise ValueError(f"tail: {self.tail!r} is not one of {TAILS}")

    @property
    def leaves_classes_out(self) -> bool:
        return self.tail == "renormalize"

    def ask(self, teacher: Teacher, about: Question) -> KeptClasses:
        values, ids = teacher.topk(about.nodes, self.k, about.blank, about.temperature)

        def pair(log_p: Tensor) -> tuple[Tensor, Tensor]:
            log_q, log_p = without_repeats(values, log_p, ids)
            return with_tail(log_q, log_p, self.tail, about.num_classes)

        return KeptClasses(ids, pair)


@dataclass(frozen=True)
class Collapsed(ClassSet):
    """{next label, blank, rest}; {blank, rest} where no label leaves the node.

    Panchapagesan 2020.
    """

    def ask(self, teacher: Teacher, about: Question) -> KeptClasses:
        log_q = teacher.collapsed(about.nodes, about.arcs, about.temperature)
        has_blank = torch.ones_like(about.emits)
        # with two classes nothing is left beside label and blank
        has_rest = ~about.emits if about.num_classes == 2 else has_blank
        absent = ~torch.stack([about.emits, has_blank, has_rest], dim=1)
        log_q = log_q.masked_fill(absent, LOG_ZERO)
        return KeptClasses(
            about.arcs, lambda log_p: (log_q, log_p.masked_fill(absent, LOG_ZERO))
        )


CLASSES: dict[str, type[ClassSet]] = {
    "full": Full,
    "topk": TopK,
    "collapsed": Collapsed,
}


def class_set(classes: str | ClassSet, **options) -> ClassSet:
    """The class set of this name; a `ClassSet` is returned unchanged.

    Args:
        options: of all class sets; each takes its own.

    Raises:
        ValueError: the name is unknown, or an option of the class set does not fit.
    """
    if isinstance(classes, ClassSet):
        return classes
    if classes not in CLASSES:
        raise ValueError(
            f"classes: {classes!r} is not one of {tuple(CLASSES)}; pass one of these "
            "names, or a ClassSet"
        )
    made = CLASSES[classes]
    taken = {x: options[x] for x in made.__dataclass_fields__ if x in options}
    return made(**taken)


def check_fit(classes: ClassSet, divergence: Divergence) -> None:
    """ValueError where a divergence would be infinite whatever the student does."""
    if classes.leaves_classes_out and divergence.is_infinite_off_support:
        raise ValueError(
            f"divergence: {type(divergence).__name__} is infinite for {classes}, which "
            "gives all other classes no mass; use tail: bucket, or another divergence"
        )
