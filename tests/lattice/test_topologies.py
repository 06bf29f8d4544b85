"""Sums and maxima of both topologies, with bands, against all alignments listed."""

import math

import pytest
import torch

from espnet_kd.lattice import has_k2, occupancy, total_score
from espnet_kd.lattice.backends import choose_backend
from tests.lattice.alignments import (
    TOPOLOGIES,
    all_sizes,
    posteriors,
    random_lattices,
    uses,
)

needs_k2 = pytest.mark.skipif(not has_k2(), reason="k2 is not installed")
BACKENDS = ["torch", pytest.param("k2", marks=needs_k2)]
# shapes whose padded T is below U, or U is 0, or T is 1, beside the batch of all sizes
ODD = [(1, 3), (2, 3), (4, 0), (1, 0), (1, 1), (3, 3)]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return choose_backend(request.param, torch.device("cpu"))


@pytest.fixture(params=TOPOLOGIES)
def topology(request):
    return request.param


def batches(topology, missing=0.0, **options):
    """Small ragged lattices of every size, and of odd padded shapes."""
    sizes = [all_sizes(4, 3, topology)]
    sizes += [
        {"frames": [t], "symbols": [u]}
        for t, u in ODD
        if topology == "regular" or u <= t
    ]
    for seed, size in enumerate(sizes):
        yield random_lattices(seed, **size, missing=missing, **options)


@pytest.mark.parametrize("missing", [0.0, 0.2, 0.5])
def test_total_score_and_uses(backend, topology, missing):
    for lattices in batches(topology, missing):
        score, *use = backend.forward_backward(*lattices, topology)
        _, frames, rows = lattices.blank.shape
        listed = lattices.listed(topology)
        target = [posteriors(paths)[0] for paths in listed]
        torch.testing.assert_close(score, torch.tensor(target, dtype=torch.float64))
        target = torch.stack([uses(paths, frames, rows) for paths in listed], dim=1)
        use = torch.stack(use)
        assert use.dtype == torch.float64
        torch.testing.assert_close(use, target, rtol=1e-9, atol=1e-12)
        # what no alignment takes is exactly zero
        assert not use[target == 0].any()


def test_the_listing_meets_lattices_without_an_alignment(topology):
    """Otherwise the test above would not."""
    empty = [
        paths
        for lattices in batches(topology, 0.5)
        for paths in lattices.listed(topology)
        if not paths
    ]
    assert len(empty) > 3


@pytest.mark.parametrize("scale", [1e2, 1e6, 1e12])
def test_scores_far_apart(backend, topology, scale):
    for lattices in batches(topology, 0.1, scale=scale):
        score, *use = backend.forward_backward(*lattices, topology)
        listed = lattices.listed(topology)
        target = torch.tensor(
            [posteriors(paths)[0] for paths in listed], dtype=torch.float64
        )
        torch.testing.assert_close(score, target)
        lengths = lattices.frames.double()
        if topology == "regular":
            lengths = lengths + lattices.symbols
        lengths = lengths.masked_fill(target == -math.inf, 0)
        torch.testing.assert_close(sum(use).sum((1, 2)), lengths)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_best_alignment(backend, topology, missing):
    for lattices in batches(topology, missing):
        rows = backend.viterbi_rows(*lattices, topology)
        _, frames, count = lattices.blank.shape
        longest = frames + count - 1 if topology == "regular" else frames
        assert rows.shape == (len(lattices.frames), longest)
        assert rows.dtype == torch.int64
        for b, paths in enumerate(lattices.listed(topology)):
            if not paths:  # anything that can index
                assert 0 <= rows[b].min() and rows[b].max() < count
                continue
            best = max(paths).rows
            rest = [int(lattices.symbols[b])] * (longest - len(best))
            assert rows[b].tolist() == best + rest


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ties_go_to_the_earliest_emissions(backend, topology, levels):
    """Where both ways are equally good, blank is taken, from the end on."""
    for lattices in batches(topology, levels=levels):
        rows = backend.viterbi_rows(*lattices, topology)
        for b, paths in enumerate(lattices.listed(topology)):
            best = max(path.score for path in paths)
            tied = [path.rows for path in paths if path.score == best]
            target = max(tied, key=lambda row: row[::-1])
            assert rows[b, : len(target)].tolist() == target


@needs_k2
@pytest.mark.parametrize("band", [False, True])
def test_backends_agree_on_large_lattices(topology, band):
    sizes = {"frames": [400, 333, 90], "symbols": [80, 17, 80]}
    lattices = random_lattices(5, **sizes, scale=3.0)
    if band:  # around the line from (0, 0) to (T_b, U_b)
        t = torch.arange(400).view(1, -1, 1) / lattices.frames.view(-1, 1, 1)
        offset = torch.arange(81) - t * lattices.symbols.view(-1, 1, 1)
        out = offset.abs() > 8
        blank, label = (x.masked_fill(out, -math.inf) for x in lattices[:2])
        lattices = lattices._replace(blank=blank, label=label)
    results = []
    for name in ("torch", "k2"):
        backend = choose_backend(name, torch.device("cpu"))
        score, *use = backend.forward_backward(*lattices, topology)
        results.append((score, *use))
        if topology == "modified":
            expected = lattices.frames.double()
            torch.testing.assert_close(sum(use).sum((1, 2)), expected)
    for ours, theirs in zip(*results, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-12)
    ours, theirs = (
        choose_backend(name, torch.device("cpu")).viterbi_rows(*lattices, topology)
        for name in ("torch", "k2")
    )
    assert torch.equal(ours, theirs)


def logits_batch():
    """Padded logits with labels; the last utterance is as long as its labels."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 4, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[1, 3, 2], [2, 2, -1], [3, 1, 1]])
    return logits, labels, torch.tensor([4, 3, 3]), torch.tensor([3, 1, 3])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("band", [False, True])
def test_gradient_of_the_total_score(name, topology, band):
    logits, *rest = logits_batch()
    ranges = torch.tensor([0, 0, 1, 2]).view(1, 4, 1) + torch.arange(2)
    options = {"topology": topology, "backend": name}
    if band:  # the last utterance would have no alignment in it
        logits, *rest = logits[:2], *(x[:2] for x in rest)
        options["ranges"] = ranges.expand(2, -1, -1)
    score = total_score(logits, *rest, **options)
    assert score.isfinite().all()
    assert torch.autograd.gradcheck(
        lambda x: total_score(x, *rest, **options), logits.requires_grad_()
    )
    use = occupancy(logits, *rest, **options)
    torch.testing.assert_close(use[..., 1].sum((1, 2)), rest[2].double())


def test_refusals_of_topology():
    logits, *rest = logits_batch()
    with pytest.raises(ValueError, match="topology: 'monotonic'"):
        total_score(logits, *rest, topology="monotonic")
    with pytest.raises(ValueError, match="label_lengths: .*more labels than frames"):
        total_score(
            logits,
            rest[0],
            torch.tensor([4, 3, 2]),
            rest[2],
            topology="modified",
        )
