"""Multiply-adds of small layers and of ESPnet models, counted by hand."""

import pytest
import torch
from torch import nn

from espnet_kd.models.branches import encode_noise
from espnet_kd.models.loading import load_model
from espnet_kd.report.operations import counting, operations
from tests.tasks.recipe import RATE, Recipe


class Two(nn.Module):
    """A layer that is called twice, and one that never is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.idle = layer, nn.Linear(2, 2)

    def forward(self, x):
        self.layer(x)
        return self.layer(x)


def counted(model, *inputs):
    """Multiply-adds of each weight."""
    with counting(model) as counts, torch.no_grad():
        model(*inputs)
    weights = dict(model.named_parameters())
    assert counts.products == 0
    return {n: times * weights[n].numel() for n, times in counts.applied.items()}


def test_linear_of_a_batch():
    # 3 x 7 rows, each 5 inputs times 4 outputs; twice
    assert counted(Two(nn.Linear(5, 4)), torch.zeros(3, 7, 5)) == {
        "layer.weight": 2 * 21 * 20
    }


def test_grouped_convolution():
    # 10 frames, kernel 3, stride 2: 4 outputs of 8 channels, each sees 2 of 4 inputs
    model = nn.Conv1d(4, 8, 3, stride=2, groups=2)
    assert counted(model, torch.zeros(2, 4, 10)) == {"weight": 2 * 4 * 8 * (2 * 3)}


def test_convolution_of_images():
    # 6 x 5 with padding 1, kernel 3 x 3, stride (2, 1): 3 x 5 places
    model = nn.Conv2d(2, 7, 3, stride=(2, 1), padding=1)
    expected = {"weight": 15 * 7 * (2 * 9)}
    assert counted(model, torch.zeros(1, 2, 6, 5)) == expected


def test_transposed_convolution():
    # each of 10 inputs of 4 channels meets 3 outputs of a kernel, in 6 channels
    model = nn.ConvTranspose1d(4, 6, 3, stride=2)
    assert counted(model, torch.zeros(1, 4, 10)) == {"weight": 10 * 4 * 3 * 6}


@pytest.mark.parametrize("kind, gates", [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers(kind, gates):
    model = kind(5, 6, num_layers=2, batch_first=True, bidirectional=True)
    found = counted(model, torch.zeros(2, 3, 5))
    steps = 2 * 3
    for way in ("", "_reverse"):
        assert found[f"weight_ih_l0{way}"] == steps * gates * 6 * 5
        assert found[f"weight_hh_l0{way}"] == steps * gates * 6 * 6
        assert found[f"weight_ih_l1{way}"] == steps * gates * 6 * (2 * 6)
    assert len(found) == 8


def test_lstm_with_projection_of_a_packed_sequence():
    model = nn.LSTM(5, 6, proj_size=2, batch_first=True)
    lengths = torch.tensor([3, 1])
    packed = nn.utils.rnn.pack_padded_sequence(torch.zeros(2, 3, 5), lengths, True)
    assert counted(model, packed) == {
        "weight_ih_l0": 4 * 24 * 5,  # 3 + 1 steps
        "weight_hh_l0": 4 * 24 * 2,
        "weight_hr_l0": 4 * 2 * 6,
    }


@pytest.mark.parametrize("kind, gates", [(nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_cells(kind, gates):
    expected = {"weight_ih": 3 * gates * 6 * 5, "weight_hh": 3 * gates * 6 * 6}
    assert counted(kind(5, 6), torch.zeros(3, 5)) == expected


def test_tied_weights_have_one_name():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert counted(model, torch.zeros(2, 4)) == {"0.weight": 2 * 2 * 16}


def test_products_of_activations():
    query, key = torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 9, 7)
    with counting(nn.Linear(1, 1)) as counts:
        torch.matmul(query, key.transpose(-1, -2))
        query @ key.transpose(-1, -2)
        query[0].bmm(key[0].transpose(-1, -2))
    assert counts.products == (6 + 6 + 3) * 5 * 9 * 7
    torch.matmul(query, key.transpose(-1, -2))  # outside, not counted
    assert counts.products == 15 * 5 * 9 * 7 and not counts.applied


@pytest.mark.skipif(
    not hasattr(nn.functional, "scaled_dot_product_attention"), reason="torch < 2"
)
def test_fused_attention():
    query, key = torch.zeros(2, 5, 7), torch.zeros(2, 9, 7)
    value = torch.zeros(2, 9, 4)
    with counting(nn.Linear(1, 1)) as counts:
        nn.functional.scaled_dot_product_attention(query, key, value)
    assert counts.products == 2 * 5 * 9 * 7 + 2 * 5 * 9 * 4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return Recipe(tmp_path_factory.mktemp("recipe"))


SECONDS, LABELS = 2, 3  # labels per second


def found(recipe, kind, **changes):
    model = load_model(*recipe.teacher(kind, **changes))
    counts = operations(model, RATE, SECONDS, LABELS)
    assert not any(module._forward_hooks for module in model.modules())
    encoder, decoder = (
        {n: round(t * SECONDS) for n, t in part.applied.items()}
        for part in (counts.encoder, counts.decoder)
    )
    return encoder, decoder, counts


def layers(applied, ending):
    return {times for name, times in applied.items() if name.endswith(ending)}


def test_hybrid(recipe):
    encoder, decoder, counts = found(recipe, "hybrid")
    # 201 frames of 10 ms: (201 - 3) // 2 + 1 = 100, then (100 - 3) // 2 + 1 = 49;
    # 16 mel bands: 7, then 3
    assert encoder["encoder.embed.conv.0.weight"] == 100 * 7
    assert encoder["encoder.embed.conv.2.weight"] == 49 * 3
    assert layers(encoder, "linear_q.weight") == {49}
    assert layers(encoder, "feed_forward.w_1.weight") == {49}
    assert not any(name.startswith(("decoder", "ctc")) for name in encoder)
    # <sos> and 2 x 3 labels
    assert decoder["decoder.output_layer.weight"] == 7
    assert decoder["decoder.decoders.0.self_attn.linear_k.weight"] == 7
    assert decoder["decoder.decoders.0.src_attn.linear_q.weight"] == 7
    assert decoder["decoder.decoders.0.src_attn.linear_k.weight"] == 49
    assert decoder["ctc.ctc_lo.weight"] == 49
    assert not any(name.startswith("encoder") for name in decoder)
    # 201 frames of 129 bins and 16 bands; scores and sums of 49 frames, 12 wide
    assert counts.encoder.products * SECONDS == 201 * 129 * 16 + 2 * 49 * 49 * 12
    assert counts.decoder.products * SECONDS == 2 * 7 * 7 * 12 + 2 * 7 * 49 * 12


def test_ctc_alone(recipe):
    _, decoder, _ = found(recipe, "ctc")
    assert decoder == {"ctc.ctc_lo.weight": 49}


def test_attention_alone(recipe):
    _, decoder, _ = found(recipe, "attention")
    assert decoder["decoder.output_layer.weight"] == 7
    assert not any(name.startswith("ctc") for name in decoder)


@pytest.mark.parametrize("kind", ["transducer", "asr_transducer"])
def test_transducers(recipe, kind):
    encoder, decoder, counts = found(recipe, kind)
    assert layers(encoder, "linear_q.weight") == {frames := 49}
    assert layers(decoder, "weight_ih_l0") == layers(decoder, "weight_hh_l0") == {7}
    for layer in ("lin_enc", "lin_dec", "lin_out"):
        assert decoder[f"joint_network.{layer}.weight"] == frames + 6
    assert not any("ctc" in name for name in {**encoder, **decoder})
    assert counts.decoder.products == 0


@pytest.mark.parametrize("kind", ["hybrid", "asr_transducer"])
def test_an_encoder_costs_what_torch_counts(recipe, kind):
    counter = pytest.importorskip("torch.utils.flop_counter", reason="torch < 2.1")
    model = load_model(*recipe.teacher(kind))
    with counter.FlopCounterMode(display=False) as torch_counts:
        encode_noise(model, SECONDS * RATE)
    counts = operations(model, RATE, SECONDS).encoder
    weights = dict(model.named_parameters())
    ours = sum(times * weights[n].numel() for n, times in counts.applied.items())
    ours = (ours + counts.products) * SECONDS
    assert 2 * ours == pytest.approx(torch_counts.get_total_flops(), rel=1e-9)


def test_a_second_of_longer_audio_costs_the_same_but_for_attention(recipe):
    model = load_model(*recipe.teacher("asr_transducer"))
    short, long = (operations(model, RATE, seconds, LABELS) for seconds in (5, 10))
    for name, times in short.encoder.applied.items():
        assert long.encoder.applied[name] == pytest.approx(times, rel=0.02)
    assert long.encoder.products > 1.05 * short.encoder.products
