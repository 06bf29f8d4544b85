"""Rows of a batch that are the same audio, and lists of hypotheses."""

import random

import pytest
import torch

from espnet_kd.distill.sharing import distinct_rows, lists_of_rows


def batch_of(groups: list, seed: int = 0, samples: int = 500) -> tuple:
    """Waveforms by the group of each row; a group has one waveform and length."""
    generator = torch.Generator().manual_seed(seed)
    count = max(groups) + 1
    waves = torch.randn(count, samples, generator=generator)
    lengths = torch.randint(samples // 2, samples + 1, (count,), generator=generator)
    lengths[0] = samples
    rows = torch.tensor(groups)
    noise = torch.randn(len(groups), samples, generator=generator)
    padding = torch.arange(samples) >= lengths[rows].unsqueeze(1)
    return torch.where(padding, noise, waves[rows]), lengths[rows], padding


def by_loops(speech, lengths) -> tuple:
    first, index = [], []
    for row, length in enumerate(lengths.tolist()):
        for kind, other in enumerate(first):
            if length == lengths[other] and torch.equal(
                speech[row, :length], speech[other, :length]
            ):
                index.append(kind)
                break
        else:
            index.append(len(first))
            first.append(row)
    return first, index


GROUPS = {
    "none shared": [0, 1, 2, 3],
    "all shared": [0, 0, 0],
    "lists of an n-best file": [0, 0, 0, 1, 2, 2, 3, 3, 3, 3],
    "in any order": [1, 0, 1, 2, 0, 1],
    "one": [0],
}


@pytest.mark.parametrize("case", GROUPS)
def test_rows_are_found_whatever_the_padding_holds(case: str):
    speech, lengths, padding = batch_of(GROUPS[case])
    first, index = distinct_rows(speech, lengths)
    assert (first.tolist(), index.tolist()) == by_loops(speech, lengths)
    assert torch.equal(lengths[first][index], lengths)
    again = speech[first][index]
    assert torch.equal(again.masked_fill(padding, 0), speech.masked_fill(padding, 0))
    speech[padding] = torch.nan
    assert torch.equal(distinct_rows(speech, lengths).index, index)


def test_random_batches():
    rng = random.Random(0)
    for seed in range(20):
        groups = [rng.randrange(4) for _ in range(rng.randrange(1, 9))]
        kinds = sorted(set(groups))
        speech, lengths, _ = batch_of([kinds.index(g) for g in groups], seed)
        first, index = distinct_rows(speech, lengths)
        assert (first.tolist(), index.tolist()) == by_loops(speech, lengths)


def test_one_sample_makes_a_difference():
    speech, lengths, _ = batch_of([0, 0, 0, 0])
    speech[1, 3] += 1e-6  # between two probes
    lengths[2] -= 1
    first, index = distinct_rows(speech, lengths)
    assert (first.tolist(), index.tolist()) == ([0, 1, 2], [0, 1, 2, 0])


def test_silence_of_different_lengths_differs():
    first, index = distinct_rows(torch.zeros(3, 100), torch.tensor([80, 100, 80]))
    assert (first.tolist(), index.tolist()) == ([0, 1], [0, 1, 0])


def test_a_row_with_nan_equals_no_other():
    speech = torch.ones(3, 10)
    speech[1:, 4] = torch.nan
    rows = distinct_rows(speech, torch.full((3,), 10))
    assert rows.index.tolist() == [0, 1, 2]


def test_several_channels():
    speech, lengths, _ = batch_of([0, 0, 1, 0])
    speech = torch.stack([speech, 2 * speech], dim=-1)
    speech[3, 7, 1] += 1
    assert distinct_rows(speech, lengths).index.tolist() == [0, 0, 1, 2]


def test_take_and_expand():
    speech, lengths, padding = batch_of([0, 0, 1, 0])
    rows = distinct_rows(speech, lengths)
    assert rows.are_shared
    few, few_lengths = rows.take(speech, lengths)
    assert few.shape == (2, 500)
    made = ((few, [(1, few)]), few_lengths)
    (out, [(layer, middle)]), out_lengths = rows.expand(made)
    assert torch.equal(out[~padding], speech[~padding]) and torch.equal(out, middle)
    assert torch.equal(out_lengths, lengths) and layer == 1


def test_where_nothing_is_shared_nothing_is_copied():
    speech, lengths, _ = batch_of([0, 1])
    rows = distinct_rows(speech, lengths)
    assert rows.take(speech, lengths)[0] is speech and rows.expand(speech) is speech


@pytest.mark.parametrize("case", GROUPS)
def test_lists_of_hypotheses(case: str):
    _, index = by_loops(*batch_of(GROUPS[case])[:2])
    scores = torch.arange(len(index)) * 1.5
    rows, lengths = lists_of_rows(torch.tensor(index))
    lists = [
        scores[row][:length].tolist() for row, length in zip(rows, lengths.tolist())
    ]
    expected = [
        [1.5 * n for n, kind in enumerate(index) if kind == target]
        for target in range(max(index) + 1)
    ]
    assert lists == expected
    assert rows.shape == (max(index) + 1, max(len(each) for each in expected))


def test_gradients_go_through_lists():
    scores = torch.randn(5, requires_grad=True)
    rows, lengths = lists_of_rows(torch.tensor([0, 1, 0, 0, 1]))
    assert lengths.tolist() == [3, 2]
    valid = torch.arange(3) < lengths[:, None]
    scores[rows].masked_fill(~valid, 0).sum(1)[1].backward()
    assert scores.grad.tolist() == [0, 1, 0, 0, 1]
