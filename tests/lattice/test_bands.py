"""Windows of rows: their guarantees, k2's, and the posterior that a band keeps."""

import math

import pytest
import torch

from espnet_kd.lattice import has_k2, occupancy, total_score
from espnet_kd.lattice.backends import choose_backend
from espnet_kd.lattice.bands import prune_ranges
from tests.lattice.alignments import TOPOLOGIES, in_band, random_lattices

needs_k2 = pytest.mark.skipif(not has_k2(), reason="k2 is not installed")
BACKENDS = ["torch", pytest.param("k2", marks=needs_k2)]
# T_b and U_b of a batch
SIZES = [
    ([12, 9, 5], [7, 3, 5]),
    ([6, 6], [0, 0]),
    ([1, 4], [0, 3]),
    ([40, 22, 31, 13], [12, 12, 0, 1]),
    ([5, 5, 5], [5, 4, 5]),
]
STEEP = [([3, 2, 8], [10, 9, 2]), ([1, 1], [4, 0])]  # many labels per frame
SEEDS = range(5)


@pytest.fixture(params=TOPOLOGIES)
def topology(request):
    return request.param


def random_uses(seed, frames, symbols, levels=None):
    """Any use of arcs (not that of a lattice): (B, T, U+1, 2), lengths."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(frames), max(frames), max(symbols) + 1, 2)
    use = torch.rand(shape, generator=generator, dtype=torch.float64)
    if levels:  # sums are exact, ties are many
        use = torch.randint(levels, shape, generator=generator).double() / 16
    return use, torch.tensor(frames), torch.tensor(symbols)


def slow_ranges(use, frames, symbols, width, topology):
    """Starts of the windows of one utterance, frame by frame from the definition."""
    longest, rows, _ = use.shape
    width = min(width, rows)
    climb = width - 1 if topology == "regular" else 1
    starts = []
    for t in range(longest):
        held = []
        for start in range(rows - width + 1):
            window = use[t, start : start + width]
            if topology == "modified":
                held.append(float(window.sum()))
            else:
                below = float(use[t, start - 1, 1]) if start else 0.0
                held.append(float(window[:, 0].sum()) - below)
        starts.append(held.index(max(held)))
    for t in range(frames - 1, longest):
        starts[t] = max(symbols + 1 - width, 0)
    for t in reversed(range(longest - 1)):
        starts[t] = min(starts[t], starts[t + 1])
    for t in reversed(range(longest - 1)):
        starts[t] = max(starts[t], starts[t + 1] - climb)
    starts[0] = 0
    for t in range(1, longest):
        starts[t] = min(starts[t], starts[t - 1] + climb)
    return [list(range(start, start + width)) for start in starts]


@pytest.mark.parametrize("width", [2, 3, 5, 50])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ranges_by_their_definition(size, width, topology):
    for seed in SEEDS:
        use, *lengths = random_uses(seed, *size, levels=4)
        ranges = prune_ranges(use, *lengths, width, topology=topology, backend="torch")
        assert ranges.dtype == torch.int64
        sizes = zip(*size, strict=True)
        assert ranges.tolist() == [
            slow_ranges(one, t, u, width, topology)
            for one, (t, u) in zip(use, sizes, strict=True)
        ]


@needs_k2
@pytest.mark.parametrize("width", [2, 3, 5, 50])
@pytest.mark.parametrize("size", SIZES + STEEP, ids=str)
def test_k2_gives_the_same(size, width, topology):
    if topology == "modified" and size in STEEP:
        return
    for seed in SEEDS:
        use, *lengths = random_uses(seed, *size, levels=4)
        ours, theirs = (
            prune_ranges(use, *lengths, width, topology=topology, backend=name)
            for name in ("torch", "k2")
        )
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("size", SIZES + STEEP, ids=str)
def test_guarantees_of_ranges(size, width, topology, backend):
    frames, symbols = size
    if topology == "modified" and size in STEEP:
        return
    for seed in SEEDS:
        use, *lengths = random_uses(seed, *size)
        ranges = prune_ranges(use, *lengths, width, topology=topology, backend=backend)
        start, count = ranges[:, :, 0], ranges.shape[2]
        assert torch.equal(ranges, start[:, :, None] + torch.arange(count))
        steep = max(math.ceil(u / t) for t, u in zip(*size, strict=True)) + 1
        target = max(width, steep) if topology == "regular" else width
        assert count == min(target, max(symbols) + 1)
        assert start.min() == 0 and ranges.max() <= max(symbols)
        climb = start[:, 1:] - start[:, :-1]
        assert (climb >= 0).all()
        assert (climb <= (count - 1 if topology == "regular" else 1)).all()
        assert (start[:, 0] == 0).all()
        for b, (t, u) in enumerate(zip(frames, symbols, strict=True)):
            assert u in ranges[b, t - 1]
        # some alignment stays inside
        lattices = in_band(random_lattices(seed, frames, symbols), ranges)
        module = choose_backend(backend, ranges.device)
        assert module.forward_backward(*lattices, topology)[0].isfinite().all()


def peaky_logits(frames, symbols, classes, topology, sharpness):
    """Each utterance prefers one random alignment; padding is NaN."""
    generator = torch.Generator().manual_seed(len(frames))
    shape = (len(frames), max(frames), max(symbols) + 1, classes)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, classes, (shape[0], shape[2] - 1), generator=generator)
    for b, (t, u) in enumerate(zip(frames, symbols, strict=True)):
        emits = torch.randperm(t, generator=generator)[:u].sort().values.tolist()
        row = 0
        for frame in range(t):
            if frame in emits:
                logits[b, frame, row, labels[b, row]] += sharpness
                row += 1
            if frame not in emits or topology == "regular":
                logits[b, frame, row, 0] += sharpness
        logits[b, t:] = logits[b, :, u + 1 :] = math.nan
    return logits, labels, torch.tensor(frames), torch.tensor(symbols)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_band_keeps_the_posterior_of_a_peaky_lattice(topology, backend):
    options = {"topology": topology, "backend": backend}
    arguments = peaky_logits([60, 41, 30], [20, 9, 25], 8, topology, 9.0)
    full = total_score(*arguments, **options)
    use = occupancy(*arguments, **options)
    kept = {}
    for width in (3, 6, 21):
        ranges = prune_ranges(use, *arguments[2:], width, **options)
        banded = total_score(*arguments, ranges=ranges, **options)
        assert (banded <= full + 1e-9).all()
        kept[width] = (banded - full).exp()
    assert (kept[6] > 0.999).all()
    assert (kept[3] > 0.9).all()
    assert (kept[3] <= kept[6]).all() and (kept[6] <= kept[21] + 1e-12).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_widest_band_is_the_lattice(topology, backend):
    options = {"topology": topology, "backend": backend}
    arguments = peaky_logits([9, 6, 5], [5, 2, 5], 4, topology, 0.5)
    use = occupancy(*arguments, **options)
    ranges = prune_ranges(use, *arguments[2:], 6, **options)
    assert torch.equal(ranges, torch.arange(6).expand(3, 9, 6))
    banded = total_score(*arguments, ranges=ranges, **options)
    torch.testing.assert_close(banded, total_score(*arguments, **options))
    torch.testing.assert_close(occupancy(*arguments, ranges=ranges, **options), use)


def test_refusals_name_the_argument():
    use, frames, symbols = random_uses(0, [4, 3], [3, 3])
    for message, arguments, options in [
        ("occupancies: shape", (use[..., 0], frames, symbols, 3), {}),
        ("width: 1", (use, frames, symbols, 1), {}),
        ("logit_lengths: values", (use, frames + 1, symbols, 3), {}),
        ("logit_lengths.*0 frames", (use, frames * 0, symbols, 3), {}),
        ("label_lengths: values", (use, frames, symbols + 1, 3), {}),
        ("topology: 'other'", (use, frames, symbols, 3), {"topology": "other"}),
        (
            "label_lengths.*more labels than frames",
            (use, frames - 1, symbols, 3),
            {"topology": "modified"},
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            prune_ranges(*arguments, **options)
