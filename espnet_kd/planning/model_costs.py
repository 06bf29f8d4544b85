"""Costs of a model for the estimates: counted, or from its size alone."""

from __future__ import annotations

import sys
import textwrap
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_kd.config.files import read_yaml

if TYPE_CHECKING:  # torch is slow to import
    from torch import Tensor, nn

    from espnet_kd.models.branches import Encoded
    from espnet_kd.report.operations import Counts

# For a model of which only the number of parameters P and the width W are known: values
# of ESPnet's Conformers and Transformers, within a third (tests, docs/planning.md).
APPLIED = 1.2  # multiply-adds per weight and encoder frame
KEPT = 2.5  # x P / W values that autograd keeps per frame


@dataclass(frozen=True)
class Speech:
    """Properties of the audio.

    Attributes:
        rate: in Hz.
        seconds, longest: lengths of the mean and the longest utterance.
        labels: tokens per second.
    """

    rate: int = 16000
    seconds: float = 12.0
    longest: float = 30.0
    labels: float = 4.0


@dataclass(frozen=True)
class Model:
    """Costs are per second of audio, in a mean utterance.

    Attributes:
        name: for the table.
        parameters: trainable values.
        encoder: multiply-adds per second of audio.
        decoder: the same, of everything after the encoder but a transducer's lattice.
        step: multiply-adds of an attention decoder for one token of one hypothesis; in
            ESPnet's search, it projects the whole encoder output at each token.
        activations: bytes that training keeps for the backward pass, in float32.
        longest_activations: the same, in the longest utterance, where attention keeps
            more.
        frame_rate: encoder frames per second.
        vocabulary: classes.
        joint: width of the transducer's joint network; 0 without one.
    """

    name: str
    parameters: int
    encoder: float
    decoder: float
    step: float
    activations: float
    longest_activations: float
    frame_rate: float
    vocabulary: int
    joint: int = 0

    @property
    def multiply_adds(self) -> float:
        return self.encoder + self.decoder


def of_size(
    parameters: float, width: int, vocabulary: int, joint: int = 0, rate: float = 25.0
) -> Model:
    """A model of which only the size is known; ``rate`` in frames per second."""
    kept = 4 * rate * KEPT * parameters / width
    return Model(
        name=f"{parameters / 1e6:.1f} M",
        parameters=round(parameters),
        encoder=APPLIED * parameters * rate,
        decoder=0.0,
        step=0.0,
        activations=kept,
        longest_activations=kept,
        frame_rate=rate,
        vocabulary=vocabulary,
        joint=joint,
    )


def of_config(config: str | Path, vocabulary: int, speech: Speech) -> Model:
    """Build the model of a training configuration and count on noise.

    Args:
        config: training YAML of ESPnet's task asr or asr_transducer.
        vocabulary: classes, with blank, <unk> and <sos/eos>.
        speech: the audio.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: ESPnet cannot build it, e.g. for a front end that it downloads.
    """
    from espnet_kd.models.branches import nodes_of_model
    from espnet_kd.report.operations import operations

    model = build(config, vocabulary, speech.rate)
    counted = operations(model, speech.rate, speech.seconds, speech.labels)
    step = 0.0
    if "tokens" in nodes_of_model(model):
        first = operations(model, speech.rate, speech.seconds, 0).decoder
        step = speech.seconds * _multiply_adds(model, first)
    frames, kept = activations(model, speech, speech.seconds)
    _, kept_of_longest = activations(model, speech, speech.longest)
    joint = getattr(model, "joint_network", None)
    return Model(
        name=Path(config).stem,
        parameters=sum(p.numel() for p in model.parameters()),
        encoder=_multiply_adds(model, counted.encoder),
        decoder=_multiply_adds(model, counted.decoder),
        step=step,
        activations=kept / speech.seconds,
        longest_activations=kept_of_longest / speech.longest,
        frame_rate=frames / speech.seconds,
        vocabulary=vocabulary,
        joint=0 if joint is None else joint.lin_out.in_features,
    )


def _multiply_adds(model: nn.Module, counts: Counts) -> float:
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    applied = sum(times * sizes[name] for name, times in counts.applied.items())
    return applied + counts.products


def build(config: str | Path, vocabulary: int, rate: int) -> nn.Module:
    """An untrained model of a training YAML, with dummy tokens.

    Raises:
        ValueError: ESPnet cannot build it, e.g. for a front end that it downloads.
    """
    with redirect_stdout(sys.stderr):  # ESPnet prints when imported
        from espnet_kd.tasks.asr import ASRKDTask
        from espnet_kd.tasks.asr_transducer import ASRTransducerKDTask

    given = read_yaml(config)
    # Only the stand-alone transducer task defines its encoder block by block.
    blocks = "body_conf" in (given.get("encoder_conf") or {})
    task = ASRTransducerKDTask if blocks else ASRKDTask
    words = ["--config", str(config), "--token_type", "char"]
    args = task.get_parser().parse_args(words)
    args.token_list = [
        "<blank>",
        "<unk>",
        *map(str, range(vocabulary - 3)),
        "<sos/eos>",
    ]
    args.normalize = args.init = None  # statistics of features do not change sizes
    args.frontend_conf = {**(args.frontend_conf or {}), "fs": rate}
    try:
        with redirect_stdout(sys.stderr):
            return task.build_model(args)
    except Exception as error:  # whatever ESPnet raises for a configuration
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise ValueError(
            f"{config}: ESPnet cannot build this model ({reason}). Give its size "
            "instead: --teacher_parameters or --student_parameters, and its width"
        ) from error


def activations(model: nn.Module, speech: Speech, seconds: float) -> tuple[int, int]:
    """Encoder frames, and bytes that autograd keeps after a forward pass in training.

    The lattice of a transducer is left out: its size grows with frames x labels.
    Parameters are not counted.
    """
    import torch

    from espnet_kd.models.branches import encode

    parameters = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # keeps counted tensors, so that no address is reused

    def keep(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # a graph that holds its own output is never freed
        address = tensor.data_ptr()
        if address not in parameters:
            held = kept.get(address)
            if held is None or held.numel() < tensor.numel():
                kept[address] = tensor
        return tensor

    samples, labels = round(seconds * speech.rate), round(seconds * speech.labels)
    model.train()
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.random.fork_rng(devices=[]), hooks:
        torch.manual_seed(0)  # layers may be dropped at random
        noise = 0.1 * torch.randn(1, samples)
        encoded = encode(model, noise, torch.tensor([samples]))
        _behind(model, encoded, labels)
    total = sum(t.numel() * t.element_size() for t in kept.values())
    return int(encoded[1]), total


def _behind(model: nn.Module, encoded: Encoded, labels: int) -> list[Tensor]:
    """Training's computation after the encoder, up to log-probabilities."""
    import torch

    from espnet_kd.models.branches import frame_layer, nodes_of_model

    encoder_out, frames = encoded
    tokens = torch.ones(1, labels + 1, dtype=torch.long)
    logits = []
    if frame_layer(model) is not None:
        logits.append(frame_layer(model)(encoder_out))
    if getattr(model, "joint_network", None) is not None:
        return [model.decoder(tokens), *(x.log_softmax(-1) for x in logits)]
    if "tokens" in nodes_of_model(model):
        lengths = torch.tensor([labels + 1])
        logits.append(model.decoder(encoder_out, frames, tokens, lengths)[0])
    return [x.log_softmax(-1) for x in logits]
