"""Full-sum KD over n-best lists, against loops in float64."""

import math

import pytest
import torch

from espnet_kd.losses import full_sum_kd

LENGTHS = [3, 1, 4, 2]


def scores(seed: int, dtype=torch.float64) -> torch.Tensor:
    """log P of up to four hypotheses of four utterances; NaN in the padding."""
    generator = torch.Generator().manual_seed(seed)
    values = -40 * torch.rand(4, 4, generator=generator, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        values[row, length:] = torch.nan
    return values.to(dtype)


def log_posterior(values, temperature: float) -> list:
    norm = sum(math.exp(value / temperature) for value in values)
    return [value / temperature - math.log(norm) for value in values]


def by_hand(student, teacher, distance: str, temperature: float = 1.0) -> list:
    """Sum over the list of each utterance."""
    sums = []
    for p, q, length in zip(student.tolist(), teacher.tolist(), LENGTHS):
        p, q = p[:length], q[:length]
        if distance == "kl":
            log_p, log_q = log_posterior(p, temperature), log_posterior(q, temperature)
            kl = sum(math.exp(b) * (b - a) for a, b in zip(log_p, log_q))
            sums.append(temperature**2 * kl)
        else:
            power = 1 if distance == "l1" else 2
            sums.append(sum(abs(a - b) ** power for a, b in zip(p, q)))
    return sums


CASES = [("kl", 1.0), ("kl", 2.0), ("kl", 0.5), ("l1", 1.0), ("l2", 1.0)]
lengths = torch.tensor(LENGTHS)


@pytest.mark.parametrize("distance, temperature", CASES)
def test_values(distance: str, temperature: float):
    student, teacher = scores(0), scores(1)
    options = dict(distance=distance, temperature=temperature)
    expected = by_hand(student, teacher, **options)
    sums = full_sum_kd(student, teacher, lengths, **options, reduction="none")
    assert sums.tolist() == pytest.approx(expected, rel=1e-12)
    nodes = {"batch": 4, "node": 4 if distance == "kl" else sum(LENGTHS)}
    for reduction, count in nodes.items():
        value = full_sum_kd(student, teacher, lengths, **options, reduction=reduction)
        assert float(value) == pytest.approx(sum(expected) / count, rel=1e-12)
    assert float(full_sum_kd(student, teacher, lengths, **options)) == pytest.approx(
        sum(expected) / 4
    )


@pytest.mark.parametrize("distance, temperature", CASES)
def test_gradients_by_differences(distance: str, temperature: float):
    student, teacher = scores(2), scores(3).requires_grad_()
    options = dict(distance=distance, temperature=temperature)
    leaf = student.clone().requires_grad_()
    full_sum_kd(leaf, teacher, lengths, **options).backward()
    assert teacher.grad is None
    step = 1e-6
    for row, length in enumerate(LENGTHS):
        assert (leaf.grad[row, length:] == 0).all()
        for k in range(length):
            ends = []
            for sign in (1, -1):
                moved = student.clone()
                moved[row, k] += sign * step
                ends.append(sum(by_hand(moved, teacher.detach(), **options)) / 4)
            slope = (ends[0] - ends[1]) / (2 * step)
            assert float(leaf.grad[row, k]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("distance, temperature", CASES)
def test_gradcheck(distance: str, temperature: float):
    student = scores(4).nan_to_num(0).requires_grad_()
    teacher = scores(5).nan_to_num(0)

    def kd(x):
        return full_sum_kd(
            x, teacher, lengths, distance=distance, temperature=temperature
        )

    assert torch.autograd.gradcheck(kd, student)


@pytest.mark.parametrize("distance", ["kl", "l1", "l2"])
def test_an_equal_student_has_no_loss_and_no_gradient(distance: str):
    student = scores(6).requires_grad_()
    loss = full_sum_kd(student, student.detach(), lengths, distance=distance)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_a_constant_of_one_side_matters_only_to_the_log_probabilities():
    student, teacher = scores(7), scores(8)
    kl = [full_sum_kd(student + c, teacher, lengths) for c in (0, 5)]
    torch.testing.assert_close(*kl)
    l1 = [full_sum_kd(student + c, teacher, lengths, distance="l1") for c in (0, 5)]
    assert not torch.allclose(*l1)


def test_one_hypothesis_has_no_kl():
    student = torch.tensor([[-3.0], [-70.0]], requires_grad=True)
    loss = full_sum_kd(student, torch.tensor([[-9.0], [-1.0]]), torch.tensor([1, 1]))
    loss.backward()
    assert loss.item() == 0 and not student.grad.any()


@pytest.mark.parametrize("distance", ["kl", "l1", "l2"])
def test_a_hypothesis_that_a_side_cannot_produce_is_left_out(distance: str):
    student = torch.tensor([[-3.0, -torch.inf, -5.0, -2.0]], requires_grad=True)
    teacher = torch.tensor([[-2.0, -4.0, -7.0, -torch.inf]])
    loss = full_sum_kd(student, teacher, torch.tensor([4]), distance=distance)
    kept = full_sum_kd(
        student.detach()[:, [0, 2]],
        teacher[:, [0, 2]],
        torch.tensor([2]),
        distance=distance,
    )
    assert loss.item() == pytest.approx(float(kept))
    loss.backward()
    assert student.grad.isfinite().all() and student.grad[0, 0] != 0
    assert not student.grad[0, [1, 3]].any()


def test_far_scores_and_an_empty_list_stay_finite():
    student = torch.tensor([[-900.0, -3.0], [5.0, 5.0]], requires_grad=True)
    teacher = torch.tensor([[-1.0, -2000.0], [1.0, 1.0]])
    loss = full_sum_kd(student, teacher, torch.tensor([2, 0]), reduction="none")
    assert loss[0].item() == pytest.approx(897.0) and loss[1].item() == 0
    loss.sum().backward()
    assert student.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    student = scores(9, torch.bfloat16)
    loss = full_sum_kd(student, scores(10, torch.bfloat16), lengths)
    assert loss.dtype == torch.float32
    full = full_sum_kd(student.double(), scores(10, torch.bfloat16).double(), lengths)
    assert loss.item() == pytest.approx(float(full), rel=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(distance="js"), "distance: 'js' is not one of"),
        (dict(temperature=0.0), "temperature: 0.0 must be above 0"),
        (dict(distance="l2", temperature=2.0), "temperature: 2.0 is only for .*'kl'"),
        (dict(reduction="mean"), "reduction: 'mean' is not one of"),
    ],
)
def test_a_mistake_is_named(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        full_sum_kd(scores(0), scores(1), lengths, **changes)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"student_scores: shape .*\(B, K\)"):
        full_sum_kd(scores(0)[0], scores(1)[0], lengths)
    with pytest.raises(ValueError, match="teacher_scores: .*student_scores"):
        full_sum_kd(scores(0), scores(1)[:, :2], lengths)
    with pytest.raises(ValueError, match="lengths: values 1..5"):
        full_sum_kd(scores(0), scores(1), lengths.clamp(min=1) + (lengths == 4))
