"""What must hold for every loss, whatever the numbers."""

import weakref
from typing import NamedTuple

import pytest
import torch

from espnet_kd.lattice import best_path
from espnet_kd.losses import (
    OnlineSteps,
    collapsed_lattice_kd,
    ensemble_logits,
    error_weights,
    essence_kd,
    full_kl,
    full_lattice_kd,
    path_kd,
    posterior_weights,
    reduce_nodes,
    steps_kd,
    topk_kl,
    topk_targets,
)
from espnet_kd.losses.log_space import soften

B, T, U, V, K = 3, 6, 4, 7, 3
LOSSES = ["collapsed", "full", "path", "renormalize", "bucket"]
GARBAGE = [float("nan"), float("inf"), -float("inf"), 1e9]


def at_path(logits, path):
    """Logits (B, N, V) at the nodes (t, u) of a path."""
    t, u = path.unbind(-1)
    return logits[torch.arange(len(path))[:, None], t, u]


class Case:
    """One loss on a fixed ragged batch, as a function of student and teacher logits."""

    def __init__(self, name, batch=B, frames=T, symbols=U, classes=V, k=K):
        draw = torch.Generator().manual_seed(3)
        self.name, self.k = name, k
        self.t = torch.randint(1, frames + 1, (batch,), generator=draw)
        self.u = torch.randint(0, symbols + 1, (batch,), generator=draw)
        self.t[0], self.u[0] = frames, symbols
        self.labels = torch.randint(1, classes, (batch, symbols), generator=draw)
        self.labels[torch.arange(symbols) >= self.u[:, None]] = -1
        shape = (batch, frames, symbols + 1, classes)
        self.frames = torch.arange(frames) < self.t[:, None]
        self.valid = self.frames[:, :, None] & (
            torch.arange(symbols + 1) <= self.u[:, None, None]
        )
        if name in ("renormalize", "bucket"):
            shape = (batch, frames, classes)
            self.valid = self.frames
        self.student, self.teacher = (
            2 * torch.randn(shape, generator=draw, dtype=torch.float64) for _ in "st"
        )

    def __call__(self, student, teacher, order=slice(None), lengths=torch.long, **kw):
        t, u = self.t[order].to(lengths), self.u[order].to(lengths)
        if self.name in ("renormalize", "bucket"):
            targets = topk_targets(teacher.detach().log_softmax(-1), self.k)
            return essence_kd(student, *targets, t, tail=self.name, **kw)
        if self.name == "path":
            path, n, _ = best_path(teacher, self.labels[order], t, u, backend="torch")
            return path_kd(student, teacher, path, n.to(lengths), **kw)
        loss = {"collapsed": collapsed_lattice_kd, "full": full_lattice_kd}[self.name]
        return loss(student, teacher, self.labels[order], t, u, **kw)


def value_and_grad(case, student, teacher, **kw):
    student = student.clone().requires_grad_()
    teacher = teacher.clone().requires_grad_()
    loss = case(student, teacher, **kw)
    loss.sum().backward()
    assert teacher.grad is None
    return loss.detach(), student.grad


@pytest.mark.parametrize(
    "name, temperature",
    [
        *((name, t) for name in ("collapsed", "full", "path") for t in (1.0, 2.5)),
        ("bucket", 1.0),  # stored targets carry their own temperature
    ],
)
def test_equal_models_have_no_loss(name, temperature):
    case = Case(name)
    loss, grad = value_and_grad(
        case, case.student, case.student, temperature=temperature
    )
    assert loss.abs() < 1e-12 and grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_unequal_models_have_loss(name):
    case = Case(name)
    loss, grad = value_and_grad(case, case.student, case.teacher)
    assert loss > 0.1
    # every node's gradient sums to 0 over the classes, and none is in the padding
    assert grad.sum(-1).abs().max() < 1e-12
    assert grad[case.valid].abs().max() > 0.01 and not grad[~case.valid].any()


def test_collapsed_is_full_for_two_classes():
    full, collapsed = Case("full", classes=2), Case("collapsed", classes=2)
    for ours, theirs in zip(
        value_and_grad(collapsed, full.student, full.teacher, temperature=1.5),
        value_and_grad(full, full.student, full.teacher, temperature=1.5),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_all_classes_kept_is_the_full_kl(tail):
    case = Case(tail, k=V)
    loss, grad = value_and_grad(case, case.student, case.teacher)
    q, p = case.teacher.log_softmax(-1), case.student.log_softmax(-1)
    kl = (q.exp() * (q - p)).sum(-1)[case.frames].sum() / B
    torch.testing.assert_close(loss, kl)
    expected = (p.exp() - q.exp()) * case.frames[..., None] / B
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("shift", [-2, -1, 0, 1, 3])
def test_shift_is_the_rolled_student(shift):
    case = Case("path")
    path, n, _ = best_path(case.teacher, case.labels, case.t, case.u)
    shifted = path_kd(
        case.student,
        case.teacher,
        path,
        n,
        shift=shift,
        student_lengths=case.t,
        reduction="none",
    )
    read = at_path(case.student.roll(-shift, dims=1), path)
    kept = torch.arange(path.shape[1]) < n[:, None]
    kept &= (path[..., 0] + shift < case.t[:, None]) & (path[..., 0] + shift >= 0)
    q, p = at_path(case.teacher, path).log_softmax(-1), read.log_softmax(-1)
    expected = ((q.exp() * (q - p)).sum(-1) * kept).sum(1)
    torch.testing.assert_close(shifted, expected)
    by_node = path_kd(
        case.student,
        case.teacher,
        path,
        n,
        shift=shift,
        student_lengths=case.t,
        reduction="node",
    )
    torch.testing.assert_close(by_node, expected.sum() / kept.sum())


def test_a_shift_past_the_end_is_zero_and_not_nan():
    case = Case("path")
    for reduction in ("batch", "node", "none"):
        loss, grad = value_and_grad(
            case, case.student, case.teacher, shift=T, reduction=reduction
        )
        assert not loss.any() and not grad.any()


def test_path_kd_with_a_longer_teacher():
    case = Case("path")
    longer = torch.cat([case.teacher, case.teacher[:, :1] + torch.nan], dim=1)
    path, n, _ = best_path(case.teacher, case.labels, case.t, case.u)
    a = path_kd(case.student, case.teacher, path, n)
    assert torch.equal(a, path_kd(case.student, longer, path, n))
    shorter = path_kd(case.student[:, : T - 2], case.teacher, path, n)
    same = path_kd(
        case.student, case.teacher, path, n, student_lengths=torch.full((B,), T - 2)
    )
    assert torch.equal(shorter, same) and shorter < a


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["batch", "node", "none"])
def test_reductions(name, reduction):
    case = Case(name)
    each = case(case.student, case.teacher, reduction="none")
    assert each.shape == (B,)
    nodes = case.t + case.u if name == "path" else case.valid.flatten(1).sum(1)
    expected = {"batch": each.sum() / B, "node": each.sum() / nodes.sum(), "none": each}
    torch.testing.assert_close(
        case(case.student, case.teacher, reduction=reduction), expected[reduction]
    )
    with pytest.raises(ValueError, match="'batch', 'node', 'none'"):
        case(case.student, case.teacher, reduction="mean")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_is_never_read(name, garbage):
    case = Case(name)
    outside = ~case.valid[..., None]
    assert outside.any()
    clean = [x.masked_fill(outside, 0) for x in (case.student, case.teacher)]
    dirty = [x.masked_fill(outside, garbage) for x in (case.student, case.teacher)]
    results = [value_and_grad(case, *x) for x in (clean, dirty)]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", LOSSES)
def test_batch_order_and_padding_size_change_nothing(name):
    case, order = Case(name), torch.tensor([2, 0, 1])
    loss, grad = value_and_grad(case, case.student, case.teacher, reduction="none")
    moved, moved_grad = value_and_grad(
        case, case.student[order], case.teacher[order], order=order, reduction="none"
    )
    torch.testing.assert_close(moved, loss[order], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(moved_grad, grad[order], rtol=1e-14, atol=1e-14)
    for b in range(B):
        student, teacher = case.student[b : b + 1], case.teacher[b : b + 1]
        alone = case(student, teacher, order=slice(b, b + 1), reduction="none")
        torch.testing.assert_close(alone, loss[b : b + 1])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1e4, 1e30, 3e38])
@pytest.mark.parametrize("classes", [2, V])
def test_huge_logits_stay_finite(name, scale, classes):
    case = Case(name, classes=classes, k=2)
    student, teacher = (
        (scale * x.sign()).float() for x in (case.student, case.teacher)
    )
    for other in (teacher, student, -student):
        loss, grad = value_and_grad(case, student, other)
        assert loss.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 3e38])
@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.5, 20.0])
def test_huge_logits_stay_finite_at_any_temperature(name, scale, temperature):
    case = Case(name, k=2)
    student, teacher = (
        (scale * x.sign()).float() for x in (case.student, case.teacher)
    )
    for other in (teacher, student, -student):
        loss, grad = value_and_grad(case, student, other, temperature=temperature)
        assert loss.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.01, 0.7, 3.0])
def test_temperature_by_softmax_of_the_quotient(temperature):
    """Value, and the gradient T (p - q), where nothing overflows; a shift of all logits
    changes neither."""
    student, teacher = torch.randn(2, 5, V, dtype=torch.float64) / 10
    q, p = ((x / temperature).softmax(-1) for x in (teacher, student))
    for shift in (0.0, 1e6):
        logits = (student + shift).requires_grad_()
        losses = full_kl(logits, teacher + shift, temperature)
        (grad,) = torch.autograd.grad(losses.sum(), logits)
        expected = temperature**2 * (q * (q / p).log()).sum(-1)
        torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(grad, temperature * (p - q), rtol=1e-6, atol=1e-9)


def test_largest_logit_takes_all_at_a_low_temperature():
    """3e38 / 0.01 is beyond float32; the posteriors are one-hot, or shared by two."""
    big = 3e38
    logits = torch.tensor([[big, -big, 0.0], [big, big, 0.0], [-big, -big, -big]])
    expected = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(soften(logits, 0.01).exp(), expected)


def test_rest_mass_survives_where_one_minus_p_is_zero():
    """Rest of about e-40 and e-50: 1 - p would be 0 on both sides."""
    student, teacher = torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3)
    student[..., 1:], teacher[..., 1:] = -50.0, -2.0
    args = (torch.zeros(1, 0).long(), torch.tensor([1]), torch.tensor([0]))
    loss = collapsed_lattice_kd(student, teacher, *args)
    q, p = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    q_rest, p_rest = q[..., 1:].logsumexp(-1), p[..., 1:].logsumexp(-1)
    kl = q[..., 0].exp() * (q - p)[..., 0] + q_rest.exp() * (q_rest - p_rest)
    torch.testing.assert_close(loss.double(), kl.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    case = Case(name)
    low = [x.to(dtype) for x in (case.student, case.teacher)]
    teacher = low[1].float()  # the test's own targets and path come from it
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, grad = value_and_grad(case, low[0], teacher)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    assert torch.equal(loss, case(low[0].float(), teacher))
    if name in ("collapsed", "full", "path"):
        assert torch.equal(loss, case(low[0], low[1]))
    assert case(case.student, case.teacher).dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
def test_lengths_may_be_int32(name):
    case = Case(name)
    assert torch.equal(
        case(case.student, case.teacher, lengths=torch.int32),
        case(case.student, case.teacher, lengths=torch.int64),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_no_labels_at_all(name):
    case = Case(name, symbols=0)
    loss, grad = value_and_grad(case, case.student, case.teacher)
    assert loss > 0 and grad.isfinite().all()


@pytest.mark.parametrize("name", ["collapsed", "full", "path"])
def test_temperature_divides_both_and_squares(name):
    case = Case(name)
    path = best_path(case.teacher, case.labels, case.t, case.u)[:2]
    if name == "path":
        warm = path_kd(case.student, case.teacher, *path, temperature=3.0)
        cold = path_kd(case.student / 3, case.teacher / 3, *path)
    else:
        warm = case(case.student, case.teacher, temperature=3.0)
        cold = case(case.student / 3, case.teacher / 3)
    torch.testing.assert_close(warm, 9 * cold)
    with pytest.raises(ValueError, match="temperature: 0"):
        case(case.student, case.teacher, temperature=0)


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_temperature_divides_only_the_student_of_stored_targets(tail):
    case = Case(tail)
    targets = topk_targets(case.teacher.log_softmax(-1), K)
    warm = essence_kd(case.student, *targets, case.t, tail=tail, temperature=3.0)
    cold = essence_kd(case.student / 3, *targets, case.t, tail=tail)
    torch.testing.assert_close(warm, 9 * cold)


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name):
    case = Case(name, batch=2, frames=3, symbols=2, classes=4, k=2)
    assert torch.autograd.gradcheck(
        lambda x: case(x, case.teacher, temperature=1.5, reduction="none"),
        case.student.requires_grad_(),
    )


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_classes_of_no_mass_are_harmless(tail):
    student = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    values = torch.tensor([[[0.6, 0.3, 0.0], [0.6, 0.3, 0.0]]]).double().log()
    ids = torch.tensor([[[2, 0, 3], [2, 0, 3]]])
    loss = essence_kd(student, values, ids, torch.tensor([2]), tail=tail)
    (grad,) = torch.autograd.grad(loss, student)
    assert loss.isfinite() and grad.isfinite().all()
    if tail == "renormalize":
        fewer = essence_kd(student, values[..., :2], ids[..., :2], torch.tensor([2]))
        torch.testing.assert_close(loss, fewer)
    nothing = essence_kd(student, values - torch.inf, ids, torch.tensor([2]))
    assert nothing == 0


@pytest.mark.parametrize("excess", [0.0, 1e-7, 1e-3])
def test_bucket_of_targets_that_sum_to_one_or_more(excess):
    student = torch.randn(1, 1, 5, requires_grad=True)
    values = (torch.tensor([[[0.75, 0.25]]]) * (1 + excess)).log()
    ids = torch.tensor([[[1, 4]]])
    loss = essence_kd(student, values, ids, torch.tensor([1]), tail="bucket")
    exact = essence_kd(student, values, ids, torch.tensor([1]))
    torch.testing.assert_close(loss, exact, rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(loss, student)
    assert grad.isfinite().all()


@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_targets_stored_in_half_precision(tail):
    """Their sum is off by rounding; the loss is that of the exact ones, but for it."""
    case = Case(tail)
    values, ids = topk_targets(case.teacher.log_softmax(-1), K)
    losses = {
        kind: essence_kd(case.student, stored, ids, case.t, tail=tail)
        for kind, stored in (("exact", values), ("half", values.half()))
    }
    torch.testing.assert_close(losses["half"], losses["exact"], rtol=2e-3, atol=2e-3)


def test_a_bucket_takes_what_rounding_left_of_one():
    """Below 1 the difference is tail; above 1 the tail is empty."""
    student, ids = torch.zeros(1, 1, 4), torch.tensor([[[1, 3]]])
    p = torch.tensor([0.25, 0.25, 0.5])
    for stored, q in (
        ([0.7, 0.299], [0.7, 0.299, 0.001]),
        ([0.8, 0.202], [0.8 / 1.002, 0.202 / 1.002, 0.0]),
    ):
        values, q = torch.tensor([[stored]]).log(), torch.tensor(q)
        expected = torch.xlogy(q, q / p).sum()
        loss = essence_kd(student, values, ids, torch.tensor([1]), tail="bucket")
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_topk_targets():
    log_probs = torch.tensor([[-4.0, -0.5, -2.0, -3.0, -9.0]])
    values, ids = topk_targets(log_probs, 3)
    assert ids.tolist() == [[1, 2, 0]] and values.tolist() == [[-0.5, -2.0, -4.0]]
    assert topk_targets(log_probs, 3, keep=(4, 0))[1].tolist() == [[1, 0, 4]]
    assert topk_targets(log_probs, 2, keep=())[1].tolist() == [[1, 2]]
    assert topk_targets(log_probs.half(), 5)[0].dtype == torch.float16
    for k, keep in [(6, ()), (1, (0, 1)), (0, ()), (3, (5,)), (3, (-1,))]:
        with pytest.raises(ValueError, match="k: |keep: "):
            topk_targets(log_probs, k, keep=keep)


def test_error_weights():
    wer = torch.tensor([0.0, 0.1, 1.0, 1.5])
    torch.testing.assert_close(error_weights(wer, 2.0), torch.exp(-2 * wer))
    assert error_weights(wer, 0).tolist() == [1, 1, 1, 1]
    assert error_weights(0.4, 1.0).item() == pytest.approx(0.670, abs=5e-4)
    for bad, beta in [(-0.1, 1.0), (float("nan"), 1.0), (0.1, -1), (0.1, float("nan"))]:
        with pytest.raises(ValueError, match="wer: |beta: "):
            error_weights(bad, beta)


def test_posterior_weights():
    nan = float("nan")
    scores = torch.tensor([[-3.0, -1.0, -2.0], [-1e4, 2.0, nan], [nan, nan, nan]])
    lengths = torch.tensor([2, 3, 1])
    weights = posterior_weights(scores, 0.5, torch.tensor([3, 2, 0]))
    torch.testing.assert_close(weights[0], (scores[0] / 2).softmax(-1))
    assert weights[1].tolist() == [0, 1, 0] and weights[2].tolist() == [0, 0, 0]
    huge = torch.tensor([[3e38, -3e38, nan], [3e38, 3e38, 0.0], [-3e38, nan, nan]])
    expected = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [1.0, 0, 0]])
    for scale in (1.0, 10.0, 1e30):
        assert torch.equal(posterior_weights(huge, scale, lengths), expected)
    assert posterior_weights(huge, 0.0, lengths)[0].tolist() == [0.5, 0.5, 0]
    assert posterior_weights(torch.zeros(2, 0), 1.0, lengths[:2] * 0).shape == (2, 0)
    uniform = posterior_weights(scores, 0, torch.tensor([3, 2, 1]))
    torch.testing.assert_close(uniform[:2].sum(1), torch.ones(2))
    assert uniform[1].tolist() == [0.5, 0.5, 0]
    with pytest.raises(ValueError, match="lengths: values"):
        posterior_weights(scores, 1.0, torch.tensor([4, 2, 0]))


def test_ensemble_of_teachers():
    a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    assert ensemble_logits([a], [0.3]) is a
    for temperature in (1.0, 2.0):
        z = ensemble_logits([a, b], [1.0, 3.0], temperature)
        soft = [(x / temperature).softmax(-1) for x in (a, b, z)]
        torch.testing.assert_close(soft[2], 0.25 * soft[0] + 0.75 * soft[1])
    torch.testing.assert_close(
        ensemble_logits([a, b], [2.0, 0.0]).softmax(-1), a.softmax(-1)
    )
    huge = torch.tensor([3e38, -3e38, 0.0])
    for temperature in (0.01, 1.0):
        z = ensemble_logits([huge, -huge], [1.0, 3.0], temperature)
        assert z.isfinite().all()
        expected = torch.tensor([0.25, 0.75, 0.0])
        torch.testing.assert_close(soften(z, temperature).exp(), expected)
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="weights: "):
            ensemble_logits([a, b], weights)
    with pytest.raises(ValueError, match=r"logits\[1\]: shape \(2, 3, 4\)"):
        ensemble_logits([a, b[..., :4]], [1.0, 1.0])


def test_any_nodes_go_with_any_classes():
    """Path nodes x top-k with all classes is the full KL on the path."""
    case = Case("path")
    path, n, _ = best_path(case.teacher, case.labels, case.t, case.u)
    targets = topk_targets(at_path(case.teacher, path).log_softmax(-1), V)
    losses = topk_kl(at_path(case.student, path), *targets, "bucket")
    valid = torch.arange(path.shape[1]) < n[:, None]
    torch.testing.assert_close(
        reduce_nodes(losses, valid), case(case.student, case.teacher)
    )


def test_refusals_name_the_argument():
    case = Case("full")
    student, teacher, path = case.student, case.teacher, torch.zeros(B, 2, 2).long()
    rest, two = (case.labels, case.t, case.u), torch.full((B,), 2)
    for loss in (full_lattice_kd, collapsed_lattice_kd):
        with pytest.raises(ValueError, match=r"teacher: shape \(3, 5.*\(3, 6"):
            loss(student, teacher[:, :-1], *rest)
        with pytest.raises(ValueError, match="logit_lengths: values"):
            loss(student[:, :-1], teacher[:, :-1], *rest)
    for other in (teacher[..., :-1], teacher[:, :, :-1], teacher[:-1]):
        with pytest.raises(ValueError, match="teacher: shape"):
            path_kd(student, other, path, two)
    with pytest.raises(ValueError, match="path: shape"):
        path_kd(student, teacher, path[:-1], two[:-1])
    with pytest.raises(ValueError, match="path_lengths: values"):
        path_kd(student, teacher, path, two + 1)
    with pytest.raises(ValueError, match="student_lengths: values"):
        path_kd(student, teacher, path, two, student_lengths=two + T)
    with pytest.raises(ValueError, match="path: has nodes outside"):
        path_kd(student, teacher, path + T, two, shift=-T)
    frames, values, ids = student[:, :, 0], student[:, :, 0, :K], path[:, :1, :1]
    ids = ids.expand(B, T, K)
    with pytest.raises(ValueError, match="topk_ids: shape"):
        essence_kd(frames, values, ids[..., :1], two)
    with pytest.raises(ValueError, match="topk_ids: shape"):
        essence_kd(frames[:, :-1], values, ids, two)
    with pytest.raises(ValueError, match="tail: 'drop'"):
        essence_kd(frames, values, ids, two, tail="drop")
    with pytest.raises(ValueError, match="topk_ids: 3 classes"):
        essence_kd(frames[..., :2], values, ids, two)


@pytest.mark.parametrize("classes", ["full", "topk"])
def test_the_graph_of_steps_does_not_hold_the_teacher(classes):
    """Logits of a large ensemble would be kept until the backward pass."""

    class Ensemble(NamedTuple):
        logits: torch.Tensor

        def log_probs(self, temperature):
            return OnlineSteps(self.logits).log_probs(temperature)

        def topk(self, k, keep, temperature):
            return OnlineSteps(self.logits).topk(k, keep, temperature)

    student = torch.randn(2, 7, 5, requires_grad=True)
    teacher = torch.randn(2, 7, 5)
    held, lengths = weakref.ref(teacher), torch.tensor([7, 4])
    loss = steps_kd(student, Ensemble(teacher), lengths, classes=classes).sum()
    del teacher
    assert held() is None
    loss.backward()
    assert student.grad.isfinite().all()
