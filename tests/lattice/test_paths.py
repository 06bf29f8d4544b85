"""n-best and sampled alignments against all alignments listed."""

import collections
import math

import pytest
import torch

from espnet_kd.lattice import (
    best_path,
    has_k2,
    nbest_paths,
    sample_paths,
    total_score,
)
from espnet_kd.lattice.backends import choose_backend
from espnet_kd.lattice.paths import nbest_rows, sample_rows
from tests.lattice.alignments import (
    TOPOLOGIES,
    all_sizes,
    posteriors,
    random_lattices,
    uses,
)

BACKENDS = [
    "torch",
    pytest.param(
        "k2", marks=pytest.mark.skipif(not has_k2(), reason="k2 is not installed")
    ),
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return choose_backend(request.param, torch.device("cpu"))


@pytest.fixture(params=TOPOLOGIES)
def topology(request):
    return request.param


def padded(path, symbols, longest):
    return path.rows + [symbols] * (longest - len(path.rows))


@pytest.mark.parametrize("n", [1, 2, 7, 50])
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_nbest_are_the_best_of_all(topology, n, missing):
    """More are requested than the smaller lattices have."""
    lattices = random_lattices(n, **all_sizes(4, 3, topology), missing=missing)
    rows, scores = nbest_rows(*lattices, n, topology)
    longest = 4 + 3 if topology == "regular" else 4
    assert rows.shape == (len(lattices.frames), n, longest)
    assert rows.dtype == torch.int64 and scores.dtype == torch.float64
    for b, paths in enumerate(lattices.listed(topology)):
        paths = sorted(paths, reverse=True)[:n]
        target = [path.score for path in paths]
        target += [-math.inf] * (n - len(paths))
        assert scores[b].tolist() == pytest.approx(target)
        if paths:
            paths += [paths[0]] * (n - len(paths))
            symbols = int(lattices.symbols[b])
            target = [padded(path, symbols, longest) for path in paths]
            assert rows[b].tolist() == target
        assert 0 <= rows[b].min() and rows[b].max() <= 3


def test_nbest_of_ties_are_distinct(topology):
    backend = choose_backend("torch", torch.device("cpu"))
    lattices = random_lattices(0, [4, 3], [3, 2], levels=2)
    rows, scores = nbest_rows(*lattices, 20, topology)
    best = backend.viterbi_rows(*lattices, topology)
    assert torch.equal(rows[:, 0], best)
    for b, paths in enumerate(lattices.listed(topology)):
        found = min(20, len(paths))
        assert len({tuple(x) for x in rows[b, :found].tolist()}) == found
        target = sorted((path.score for path in paths), reverse=True)[:20]
        assert scores[b, :found].tolist() == target


def test_nbest_on_a_larger_lattice(topology):
    """Descending, distinct, first the best; too many alignments to list."""
    lattices = random_lattices(1, [60, 45, 30], [20, 0, 20], missing=0.05)
    rows, scores = nbest_rows(*lattices, 30, topology)
    assert torch.equal(
        rows[:, 0],
        choose_backend("torch", torch.device("cpu")).viterbi_rows(*lattices, topology),
    )
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    for b in (0, 2):
        assert len({tuple(x) for x in rows[b].tolist()}) == 30
    assert not scores[1, 1:].isfinite().any()  # no label: one alignment


def test_samples_follow_the_posterior(topology):
    """Every alignment is drawn with its posterior probability, within 5 deviations."""
    n = 20000
    lattices = random_lattices(2, [4, 3, 2], [3, 1, 2], scale=1.0, missing=0.1)
    generator = torch.Generator().manual_seed(1)
    rows = sample_rows(*lattices, n, topology, generator)
    longest = 4 + 3 if topology == "regular" else 4
    assert rows.shape == (3, n, longest) and rows.dtype == torch.int64
    for b, paths in enumerate(lattices.listed(topology)):
        drawn = collections.Counter(map(tuple, rows[b].tolist()))
        symbols = int(lattices.symbols[b])
        shares = posteriors(paths)[1]
        for path, share in zip(paths, shares, strict=True):
            count = drawn.pop(tuple(padded(path, symbols, longest)), 0)
            deviation = math.sqrt(n * share * (1 - share))
            assert abs(count - n * share) <= 5 * deviation + 1
        assert not drawn  # nothing but alignments


def test_samples_follow_the_occupancy_of_a_larger_lattice(backend):
    n = 4000
    lattices = random_lattices(3, [25, 12], [6, 9])
    rows = sample_rows(*lattices, n, generator=torch.Generator().manual_seed(2))
    _, blank_use, label_use = backend.forward_backward(*lattices, "regular")
    for b, (frames, symbols) in enumerate([(25, 6), (12, 9)]):
        row = rows[b, :, : frames + symbols]
        t = torch.arange(frames + symbols) - row
        assert (row[:, 0] == 0).all() and (row[:, -1] == symbols).all()
        moves = row[:, 1:] - row[:, :-1]
        assert ((moves == 0) | (moves == 1)).all()
        visits = torch.zeros(25, 10, dtype=torch.float64)
        visits.index_put_((t, row), torch.tensor(1.0 / n).double(), accumulate=True)
        target = (blank_use + label_use)[b]
        deviation = (target * (1 - target).clamp(min=0) / n).sqrt()
        assert ((visits - target).abs() <= 5 * deviation + 1 / n).all()


def test_sampling_is_seeded(topology):
    lattices = random_lattices(4, [6, 5], [3, 2])
    draws = [
        sample_rows(*lattices, 5, topology, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(3)
    first = sample_rows(*lattices, 5, topology)
    again = sample_rows(*lattices, 5, topology)
    assert not torch.equal(first, again)
    torch.manual_seed(3)
    assert torch.equal(first, sample_rows(*lattices, 5, topology))


def logits_batch():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(3, 4, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[1, 4, 2], [3, 3, -1], [-1, -1, -1]])
    return logits, labels, torch.tensor([4, 3, 2]), torch.tensor([3, 2, 0])


def follow(path, log_probs, labels, frames, symbols, topology):
    """Score of the nodes of an alignment, each step checked."""
    steps = path.tolist()
    assert steps[0] == [0, 0]
    if topology == "regular":
        assert steps[-1] == [frames - 1, symbols]
    total = 0.0
    for (t, u), (next_t, next_u) in zip(
        steps, [*steps[1:], [frames, symbols]], strict=True
    ):
        emits = next_u > u
        by_frame = topology == "modified" or not emits
        assert (next_t - t, next_u - u) == (int(by_frame), int(emits))
        total += float(log_probs[t, u, labels[u] if emits else 0])
    return total


@pytest.mark.parametrize("band", [False, True])
@pytest.mark.parametrize("name", BACKENDS)
def test_paths_of_logits(name, topology, band):
    """Paths are valid, padded with their last node, and have the right scores."""
    logits, labels, frames, symbols = arguments = logits_batch()
    ranges = torch.tensor([[0, 1, 1, 2], [0, 0, 1, 1], [0, 0, 0, 0]])
    ranges = ranges.unsqueeze(2) + torch.arange(2)
    options = {"topology": topology, "backend": name}
    if band:
        options["ranges"] = ranges
    total = total_score(*arguments, **options)
    best, lengths, best_score = best_path(*arguments, **options)
    target = frames + symbols if topology == "regular" else frames
    log_probs = logits.log_softmax(-1)
    for paths, sizes, scores in (
        nbest_paths(*arguments, 40, **options),
        sample_paths(*arguments, 6, **options),
    ):
        assert torch.equal(sizes, target) and torch.equal(lengths, target)
        assert paths.shape == (3, scores.shape[1], int(target.max()), 2)
        for b, size in enumerate(target.tolist()):
            for path, score in zip(paths[b], scores[b].tolist(), strict=True):
                assert (path[size:] == path[size - 1]).all()
                cost = follow(
                    path[:size],
                    log_probs[b],
                    labels[b],
                    int(frames[b]),
                    int(symbols[b]),
                    topology,
                )
                assert score in (pytest.approx(cost), -math.inf)
                if band:
                    assert all(u in ranges[b, t] for t, u in path[:size].tolist())
        if paths.shape[1] == 40:  # n-best
            assert torch.equal(paths[:, 0], best)
            torch.testing.assert_close(scores[:, 0], best_score)
            torch.testing.assert_close(scores.logsumexp(1), total)


def test_at_least_one_path_is_requested():
    for function in (nbest_paths, sample_paths):
        with pytest.raises(ValueError, match="n: 0"):
            function(*logits_batch(), 0)


def test_uses_are_the_mean_of_all_alignments():
    """The reference itself: shares sum to one, so uses sum to the nodes of a path."""
    (paths,) = random_lattices(5, [4], [3]).listed("regular")
    assert len(paths) == math.comb(6, 3)
    assert uses(paths, 4, 4).sum((1, 2)).tolist() == pytest.approx([4, 3])
    (paths,) = random_lattices(5, [4], [3]).listed("modified")
    assert len(paths) == math.comb(4, 3)
    assert uses(paths, 4, 4).sum((1, 2)).tolist() == pytest.approx([1, 3])
