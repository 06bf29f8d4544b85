"""KD between layers: values by loops, projections that no state_dict contains."""

import math

import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

from espnet_kd.distill.hidden import Projection, hidden_kd
from espnet_kd.models.layers import Layer, frames_of

LENGTHS = [5, 2, 4]


def frames(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        values[row, length:] = torch.nan
    return values


def by_hand(student, teacher, loss: str) -> list:
    sums = []
    for one, other, length in zip(student.tolist(), teacher.tolist(), LENGTHS):
        total = 0.0
        for x, y in zip(one[:length], other[:length]):
            if loss == "mse":
                total += sum((a - b) ** 2 for a, b in zip(x, y)) / len(x)
            else:
                product = sum(a * b for a, b in zip(x, y))
                total += 1 - product / math.hypot(*x) / math.hypot(*y)
        sums.append(total)
    return sums


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_values_and_gradients(loss: str):
    student, teacher = frames(0), frames(1).requires_grad_()
    leaf = student.clone().requires_grad_()
    sums = hidden_kd(leaf, teacher, torch.tensor(LENGTHS), loss)
    expected = by_hand(student, teacher.detach(), loss)
    assert sums.tolist() == pytest.approx(expected, rel=1e-12)
    sums.sum().backward()
    assert teacher.grad is None
    for row, t, d in [(0, 0, 0), (0, 4, 3), (1, 1, 2), (2, 3, 1)]:
        ends = []
        for sign in (1, -1):
            moved = student.clone()
            moved[row, t, d] += sign * 1e-6
            ends.append(sum(by_hand(moved, teacher.detach(), loss)))
        slope = (ends[0] - ends[1]) / 2e-6
        assert float(leaf.grad[row, t, d]) == pytest.approx(slope, rel=1e-5)
    for row, length in enumerate(LENGTHS):
        assert (leaf.grad[row, length:] == 0).all()


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_equal_frames_have_no_loss(loss: str):
    x = frames(2)
    sums = hidden_kd(x, x, torch.tensor(LENGTHS), loss)
    assert sums.tolist() == pytest.approx([0, 0, 0], abs=1e-12)


def test_half_precision_is_computed_in_float32():
    x, y = (frames(seed).bfloat16() for seed in (3, 4))
    sums = hidden_kd(x, y, torch.tensor(LENGTHS), "mse")
    assert sums.dtype == torch.float32
    expected = by_hand(x.double(), y.double(), "mse")
    assert sums.tolist() == pytest.approx(expected, rel=1e-5)


class Model(torch.nn.Module):
    """Encoders of ESPnet: their layers return (x, mask) or ((x, positions), mask)."""

    def __init__(self, kind: type = TransformerEncoder) -> None:
        super().__init__()
        self.encoder = kind(
            8,
            output_size=6,
            attention_heads=2,
            linear_units=4,
            num_blocks=2,
            dropout_rate=0.0,
            positional_dropout_rate=0.0,
            attention_dropout_rate=0.0,
        )
        self.idle = torch.nn.Linear(1, 1)
        self.eval()


@pytest.mark.parametrize("kind", [TransformerEncoder, ConformerEncoder])
def test_a_layer_keeps_its_output_and_changes_nothing(kind: type):
    model, x, lengths = Model(kind), torch.randn(2, 40, 8), torch.tensor([40, 30])
    plain = model.encoder(x, lengths)[0]
    layer = Layer(model, "encoder.encoders.1")
    made, made_lengths, _ = model.encoder(x, lengths)
    assert torch.equal(made, plain)
    taken, taken_lengths = layer.take()
    # The last layer of these encoders is followed by a layer normalisation.
    assert torch.equal(model.encoder.after_norm(taken), plain)
    assert torch.equal(taken_lengths, made_lengths)
    model.encoder(x, lengths)
    assert layer.width() == 6
    for batch in (x, 2 * x):
        last = model.encoder(batch, lengths)[0]
    assert torch.equal(model.encoder.after_norm(layer.take()[0]), last)
    with pytest.raises(ValueError, match="encoders.1' did not run .*layer_drop_rate"):
        layer.take()


def test_an_unknown_module_is_refused_with_near_names():
    message = r"'encoder.encoder.0' is not a module of Model; .*'encoder.encoders.0'"
    with pytest.raises(ValueError, match=message):
        Layer(Model(), "encoder.encoder.0")


def test_a_module_without_frames_is_refused():
    model = Model()
    idle, early = Layer(model, "idle"), Layer(model, "encoder.embed.conv")
    model.encoder(torch.randn(1, 40, 8), torch.tensor([40]))
    with pytest.raises(ValueError, match="'idle' did not run"):
        idle.width()
    with pytest.raises(ValueError, match="embed.conv' outputs .* after the subsamp"):
        early.width()


def test_frames_of():
    x = torch.zeros(1)
    for output in (x, (x, None), ((x, 1), None), [x, 2], (((x,),),)):
        assert frames_of(output) is x


def test_a_projection_is_trained_and_never_saved():
    model = Model()
    stock = {name: value.clone() for name, value in model.state_dict().items()}
    model.kd_projections = torch.nn.ModuleList([Projection(6, 3), Projection(6, 8)])
    assert model.state_dict().keys() == stock.keys()
    named = [name for name, _ in model.named_parameters()]
    assert sum(name.startswith("kd_projections") for name in named) == 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.clone() for p in model.kd_projections.parameters()]
    x = torch.randn(2, 5, 6)
    sum(each(x).square().sum() for each in model.kd_projections).backward()
    optimizer.step()
    after = list(model.kd_projections.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after))
    result = model.load_state_dict(stock, strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert all(
        torch.equal(a, b) for a, b in zip(after, model.kd_projections.parameters())
    )
    Model().load_state_dict(model.state_dict(), strict=True)
