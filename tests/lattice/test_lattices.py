"""`Lattices`: one reading of the joint network serves all methods."""

import pytest
import torch

from espnet_kd.lattice import (
    FactoredLogits,
    Lattices,
    best_path,
    has_k2,
    nbest_paths,
    occupancy,
    prune_ranges,
    sample_paths,
    total_score,
)
from espnet_kd.lattice.kept_classes import class_log_probs
from espnet_kd.lattice.nodes import Nodes, make_layout
from espnet_kd.lattice.reading import read_nodes

LABELS = torch.tensor([[1, 2, 3], [4, 1, -1]])
LENGTHS = torch.tensor([6, 4]), torch.tensor([3, 2])
BACKENDS = [
    None,
    "torch",
    pytest.param(
        "k2", marks=pytest.mark.skipif(not has_k2(), reason="k2 is not installed")
    ),
]


def joint(activation="tanh") -> FactoredLogits:
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, 6, 5), (2, 4, 5), (7, 5), (7,)]
    tensors = (torch.randn(*shape, generator=draw).double() for shape in shapes)
    return FactoredLogits(*(x.requires_grad_() for x in tensors), activation)


def equal(one, other) -> None:
    for x, y in zip(one, other, strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("topology", ["regular", "modified"])
@pytest.mark.parametrize("is_banded", [False, True])
@pytest.mark.parametrize("form", ["dense", "factored"])
def test_the_functions_are_its_methods(form, is_banded, topology, backend):
    logits = joint() if form == "factored" else joint().dense()
    args, options = (logits, LABELS, *LENGTHS), dict(topology=topology, backend=backend)
    if is_banded:
        use = occupancy(*args, **options)
        options["ranges"] = prune_ranges(use, *LENGTHS, 2, topology=topology)
    lattices = Lattices.read(*args, **options)
    assert torch.equal(lattices.total_score(), total_score(*args, **options))
    assert torch.equal(lattices.occupancy(), occupancy(*args, **options))
    equal(lattices.best_path(), best_path(*args, **options))
    equal(lattices.nbest(3), nbest_paths(*args, 3, **options))
    draws = (torch.Generator().manual_seed(1) for _ in "ab")
    drawn = lattices.sample(3, next(draws))
    equal(drawn, sample_paths(*args, 3, generator=next(draws), **options))


@pytest.mark.parametrize("topology", ["regular", "modified"])
def test_a_band_is_that_of_its_occupancy(topology):
    lattices = Lattices.read(joint(), LABELS, *LENGTHS, topology=topology)
    expected = prune_ranges(lattices.occupancy(), *LENGTHS, 2, topology=topology)
    ranges = lattices.band(2)
    assert torch.equal(ranges, expected) and ranges.shape == (2, 6, 2)
    banded = Lattices.read(joint(), LABELS, *LENGTHS, ranges=ranges, topology=topology)
    assert (banded.total_score() < lattices.total_score()).all()


def test_the_joint_network_is_read_once():
    nodes = []

    def activation(x):
        nodes.append(len(x))
        return torch.tanh(x)

    lattices = Lattices.read(joint(activation), LABELS, *LENGTHS)
    assert sum(nodes) == 6 * 4 + 4 * 3
    lattices.total_score(), lattices.occupancy(), lattices.best_path()
    lattices.nbest(2), lattices.sample(2), lattices.band(2)
    assert sum(nodes) == 6 * 4 + 4 * 3


def test_a_score_computed_last_has_its_gradient():
    """Methods without a gradient come before and after, and do not change it."""
    gradients = []
    for before in (False, True):
        logits = joint()
        lattices = Lattices.read(logits, LABELS, *LENGTHS)
        if before:
            lattices.occupancy(), lattices.best_path()
        score = lattices.total_score()
        assert not lattices.occupancy().requires_grad
        assert not lattices.best_path()[2].requires_grad
        gradients.append(torch.autograd.grad(score.sum(), logits.tensors))
    equal(*gradients)


def test_from_what_was_read_of_nodes():
    """In any order of the nodes."""
    logits = joint()
    layout = make_layout(logits, LABELS, *LENGTHS)
    nodes = Nodes.where(layout.nodes)
    nodes = nodes.take(torch.randperm(nodes.total))
    ids = layout.arc_classes(nodes, 0)
    read = read_nodes(logits, nodes, ids, (1.0,))
    log_probs = class_log_probs(read.scores, read.rest[:, 0], ids, slice(None))
    lattices = Lattices.from_nodes(layout, nodes, log_probs)
    expected = total_score(logits, LABELS, *LENGTHS)
    torch.testing.assert_close(lattices.total_score(), expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(topology="free"), "topology: 'free' is not one of"),
        (dict(backend="numpy"), "backend: 'numpy' is not one of"),
        (dict(ranges=torch.zeros(2, 6)), "ranges: shape"),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Lattices.read(joint(), LABELS, *LENGTHS, **changes)
    lattices = Lattices.read(joint(), LABELS, *LENGTHS)
    for verb in (lattices.nbest, lattices.sample):
        with pytest.raises(ValueError, match="n: 0 paths"):
            verb(0)
