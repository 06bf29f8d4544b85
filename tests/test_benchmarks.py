"""The forms that `make bench` compares compute the same numbers."""

import pytest
import torch

from benchmarks.forms import KINDS, kernels
from benchmarks.problems import Shape, make_problem
from espnet_kd.lattice import has_k2

FORMS = [(kind, name) for kind, forms in KINDS.items() for name in forms.forms]


def loss_and_gradients(kind: str, name: str, variant: str) -> list[torch.Tensor]:
    problem = make_problem(Shape(2, 12, 4, 23), variant, joint=8, teacher_joint=12)
    form = KINDS[kind].forms[name]
    with kernels(form.triton):
        loss = form.run(problem)
    return [loss.detach(), *torch.autograd.grad(loss, problem.student.tensors)]


@pytest.mark.parametrize("variant", ["plain", "ragged"])
@pytest.mark.parametrize("kind, name", FORMS)
def test_forms_of_a_kind_agree(kind: str, name: str, variant: str) -> None:
    form = KINDS[kind].forms[name]
    if not form.exact:
        pytest.skip("its gradient is not exact: the tables show by how much")
    if form.triton and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    needs_k2 = "k2" in name or kind in ("band", "pruned")
    if needs_k2 and not has_k2():
        pytest.skip("k2 is not installed")
    values = loss_and_gradients(kind, name, variant)
    backend = "ours, k2" if kind == "pruned" else "ours, torch"
    for value, expected in zip(values, loss_and_gradients(kind, backend, variant)):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
