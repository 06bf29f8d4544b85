"""Frame rates: which can be matched, and frames by hand."""

import pytest
import torch

from espnet_kd.distill.compatibility import strides_to_common_rate
from espnet_kd.distill.frame_rates import slow_down

X = torch.tensor(
    [
        [[1.0, 10], [2, 20], [3, 30], [4, 40], [5, 50]],
        [[6.0, 60], [7, 70], [8, 80], [9, 90], [9, 90]],  # 3 frames, then padding
    ]
)
LENGTHS = torch.tensor([5, 3])


def test_stride_by_hand():
    slow, lengths = slow_down(X, LENGTHS, 2, "stride")
    assert lengths.tolist() == [3, 2]
    assert slow[0].tolist() == [[1, 10], [3, 30], [5, 50]]
    assert slow[1, :2].tolist() == [[6, 60], [8, 80]]


def test_pool_by_hand():
    slow, lengths = slow_down(X, LENGTHS, 2, "pool")
    assert lengths.tolist() == [3, 2]
    assert slow[0].tolist() == [[1.5, 15], [3.5, 35], [5, 50]]
    assert slow[1, :2].tolist() == [[6.5, 65], [8, 80]]  # padding is left out


def test_three_frames_to_one():
    slow, lengths = slow_down(X, LENGTHS, 3, "pool")
    assert lengths.tolist() == [2, 1]
    assert slow[0].tolist() == [[2, 20], [4.5, 45]]
    assert slow[1, 0].tolist() == [7, 70]


@pytest.mark.parametrize("how", ["stride", "pool"])
def test_lattices_are_slowed_down_along_time(how: str):
    lattice = torch.randn(2, 5, 3, 4)
    slow, lengths = slow_down(lattice, LENGTHS, 2, how)
    assert slow.shape == (2, 3, 3, 4)
    for u in range(3):
        row, _ = slow_down(lattice[:, :, u], LENGTHS, 2, how)
        torch.testing.assert_close(slow[:, :, u], row)


def test_equal_rates_are_left_alone():
    slow, lengths = slow_down(X, LENGTHS, 1, "pool")
    assert slow is X and lengths is LENGTHS


def test_padding_gets_no_gradient():
    x = X.clone().requires_grad_()
    slow, lengths = slow_down(x, LENGTHS, 2, "pool")
    slow[0].sum().add(slow[1, : lengths[1]].sum()).backward()
    assert x.grad[1, 3:].abs().sum() == 0 and (x.grad[1, :3] > 0).all()


def test_strides():
    rates = dict(student=25.0, wide=50.1, same=25.1, wider=75.0)
    assert strides_to_common_rate(rates) == dict(student=1, wide=2, same=1, wider=3)


@pytest.mark.parametrize("rate", [37.5, 25.5, 60.0])
def test_other_ratios_are_refused(rate: float):
    message = f"frame rates: teacher makes {rate:.2f} .* student 25.00.*integer ratios"
    with pytest.raises(ValueError, match=message):
        strides_to_common_rate(dict(student=25.0, teacher=rate))
