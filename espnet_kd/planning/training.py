"""Time, memory and disk of one training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espnet_kd.planning.machines import GIGA, Machine, Precision
from espnet_kd.planning.model_costs import Model, Speech

# Two constants convert FLOP and bytes to time. They were fitted to ten trainings that
# ESPnet published with GPU and time: see docs/planning.md, also for the errors.
UTILISATION = 0.5  # of the peak rate, during matrix products
PASSES = 50  # times that the kept activations go through memory
HALF_KEPT = 0.6  # bytes kept under AMP / bytes in float32
LOGIT_PASSES = 12  # the same as PASSES, for the logits of a transducer's lattice

# Tensors of logits (nodes x vocabulary, float32) alive at once: ESPnet's loss by
# torchaudio, and the same with KD; measured in benchmarks/results-cpu.json.
DENSE_COPIES, DENSE_KD_COPIES = 3, 4
NODE_BYTES = 800  # per node of the lean lattice, measured there too
CHUNKS = 2  # alive at once, measured there too

CONTEXT = 1e9  # CUDA's context and its libraries' workspaces
TEACHER_SHARE = 0.1  # of training's activations, alive in a teacher's forward pass
FIRST_PASS = 1 / 3  # of PASSES: forward, without backward


@dataclass(frozen=True)
class Settings:
    """Fields of a training YAML, with ESPnet's names and defaults."""

    max_epoch: int = 40
    num_iters_per_epoch: int | None = None
    batch_type: str = "folded"
    batch_bins: int = 1_000_000
    batch_size: int = 20
    use_amp: bool = False
    use_tf32: bool = False
    keep_nbest_models: int = 10
    criteria: int = 4
    optim: str = "adadelta"

    @property
    def precision(self) -> Precision:
        return "half" if self.use_amp else "tf32" if self.use_tf32 else "fp32"

    @property
    def optimiser_values(self) -> int:
        """Values that the optimiser keeps for each parameter."""
        return 1 if self.optim == "sgd" else 2


def settings_of(config: Mapping[str, Any]) -> Settings:
    """The `Settings` of a parsed training YAML."""
    names = set(Settings.__dataclass_fields__) & set(config)
    given = {name: config[name] for name in names if config[name] is not None}
    kept = given.get("keep_nbest_models")
    if isinstance(kept, list):
        given["keep_nbest_models"] = max(kept)
    criteria = config.get("best_model_criterion")
    return Settings(**given, **({"criteria": len(criteria)} if criteria else {}))


@dataclass(frozen=True)
class Teaching:
    """Teachers that run in training.

    Attributes:
        teachers: all of them.
        lattice_reads: times that a teacher's whole lattice is read per batch.
        lean: whether dense lattices are avoided.
    """

    teachers: tuple[Model, ...]
    lattice_reads: int = 0
    lean: bool = True

    def total(self, name: str) -> float:
        """Sum of an attribute over the teachers."""
        return sum(getattr(teacher, name) for teacher in self.teachers)


@dataclass(frozen=True)
class Figure:
    """A number and its formula, with numbers."""

    value: float
    formula: str


def batch_seconds(
    settings: Settings, speech: Speech, vocabulary: int, ngpu: int = 1
) -> Figure:
    """Audio of one GPU's part of a batch; at least the longest utterance.

    `numel` counts every value of a batch: samples, and tokens x vocabulary.
    """
    if settings.batch_type in ("numel", "length"):
        classes = vocabulary if settings.batch_type == "numel" else 1
        bins = speech.rate + speech.labels * classes
        seconds = settings.batch_bins / bins / ngpu
        formula = (
            f"batch_bins {settings.batch_bins:.3g} / ({speech.rate} samples + "
            f"{speech.labels:g} tokens x {classes}) / {ngpu} GPU"
        )
    else:
        seconds = settings.batch_size * speech.longest / ngpu
        formula = (
            f"batch_size {settings.batch_size} x {speech.longest:g} s / {ngpu} GPU"
        )
    return Figure(max(seconds, speech.longest), formula)


def lattice_nodes(model: Model, seconds: float, labels: float) -> float:
    """Nodes T x (U+1) of a transducer's lattice, per second of audio."""
    return model.frame_rate * (labels * seconds + 1)


def training_flop(model: Model, speech: Speech, teaching: Teaching | None) -> Figure:
    """FLOP per second of audio: 2 per multiply-add, 3 times that for the student."""
    flop = 6 * model.multiply_adds
    formula = f"6 x {model.multiply_adds:.3g} of the student"
    if teaching is not None:
        given = teaching.total("multiply_adds")
        flop += 2 * given
        formula += f" + 2 x {given:.3g} of the teachers"
    if model.joint:
        nodes = lattice_nodes(model, speech.seconds, speech.labels)
        width = model.vocabulary * model.joint
        products = 3 if teaching is None or not teaching.lean else 4
        of_teacher = 0.0
        if teaching is not None:
            width_of_all = model.vocabulary * teaching.total("joint")
            of_teacher = teaching.lattice_reads * width_of_all
        flop += 2 * nodes * (products * width + of_teacher)
        formula += (
            f" + 2 x {nodes:.3g} nodes x ({products} x {width:.3g} of the student's "
            f"joint network + {of_teacher:.3g} of the teachers')"
        )
    return Figure(flop, formula)


def training_traffic(
    model: Model, settings: Settings, speech: Speech, teaching: Teaching | None
) -> Figure:
    """Bytes that go through the GPU's memory per second of audio."""
    part = HALF_KEPT if settings.use_amp else 1.0
    kept, formula = model.activations, f"{model.activations:.3g} of the student"
    if teaching is not None:
        given = teaching.total("activations") * FIRST_PASS
        kept += given
        formula += f" + {given:.3g} of the teachers"
    traffic = PASSES * part * kept
    formula = f"{PASSES} x {part:g} x ({formula})"
    if model.joint:
        nodes = lattice_nodes(model, speech.seconds, speech.labels)
        reads = 1.0
        if teaching is not None:
            reads += len(teaching.teachers) * teaching.lattice_reads * FIRST_PASS
        logits = 4 * nodes * model.vocabulary * reads
        traffic += LOGIT_PASSES * logits
        formula += f" + {LOGIT_PASSES} x {logits:.3g} of logits"
    return Figure(traffic, formula)


def training_time(
    model: Model,
    settings: Settings,
    speech: Speech,
    audio: float,
    machine: Machine,
    utilisation: float = UTILISATION,
    teaching: Teaching | None = None,
) -> Figure:
    """Seconds of one GPU for a whole training.

    Args:
        audio: seconds of an epoch, if the settings do not limit its iterations.
    """
    per_epoch, counted = audio, f"{audio / 3600:.4g} h"
    if settings.num_iters_per_epoch:
        batch = batch_seconds(settings, speech, model.vocabulary)
        per_epoch = settings.num_iters_per_epoch * batch.value
        counted = f"{settings.num_iters_per_epoch} batches of {batch.value:.4g} s"
    flop = training_flop(model, speech, teaching)
    traffic = training_traffic(model, settings, speech, teaching)
    rate = machine.rate(settings.precision)
    second = flop.value / (rate * utilisation) + traffic.value / machine.bandwidth
    return Figure(
        settings.max_epoch * per_epoch * second,
        f"{settings.max_epoch} epochs x {counted} x {1e3 * second:.3g} ms per second "
        f"of audio: FLOP ({flop.formula}) / ({rate:.3g} x {utilisation:g}) + bytes "
        f"({traffic.formula}) / {machine.bandwidth:.3g}",
    )


def lattice_memory(
    nodes: float, vocabulary: int, joint: int, copies: int, device: str = "cuda"
) -> float:
    """Bytes of the lattice losses, forward and backward, without their inputs.

    Args:
        nodes: B x T x (U+1), with padding if dense.
        copies: of the dense logits; 0: lean.
        device: determines the chunks of the lean form.
    """
    if copies:
        return 4 * nodes * (copies * vocabulary + joint)
    return chunk_memory(nodes, vocabulary, joint, device) + NODE_BYTES * nodes


def chunk_memory(nodes: float, vocabulary: int, joint: int, device: str) -> float:
    """Bytes of the chunks of nodes in the lean form."""
    from espnet_kd.lattice.reading import CHUNK, NODES  # torch is slow to import

    width = vocabulary + 2 * joint
    size = min(NODES[device], max(64, CHUNK[device] // width), nodes)
    return CHUNKS * 4 * size * width


def training_memory(
    model: Model,
    settings: Settings,
    speech: Speech,
    ngpu: int = 1,
    teaching: Teaching | None = None,
) -> Figure:
    """Peak bytes on each GPU, with a batch of the longest utterances."""
    batch = batch_seconds(settings, speech, model.vocabulary, ngpu)
    states = 4 * model.parameters * (2 + settings.optimiser_values + (ngpu > 1))
    part = HALF_KEPT if settings.use_amp else 1.0
    kept = part * model.longest_activations * batch.value
    total = CONTEXT + states + kept
    formula = (
        f"{CONTEXT / GIGA:g} GB of CUDA + weights, gradients, optimiser"
        f"{', gradients to send' if ngpu > 1 else ''} {states / GIGA:.3g} GB + "
        f"activations {kept / GIGA:.3g} GB: {part:g} x "
        f"{model.longest_activations / 1e6:.3g} MB/s x {batch.value:.4g} s "
        f"({batch.formula})"
    )
    if model.joint:
        nodes = batch.value * lattice_nodes(model, speech.longest, speech.labels)
        copies = DENSE_COPIES
        if teaching is not None:
            copies = 0 if teaching.lean else DENSE_KD_COPIES
        lattice = lattice_memory(nodes, model.vocabulary, model.joint, copies)
        total += lattice
        form = f"{copies} dense tensors of logits" if copies else "lean"
        formula += f" + lattice {lattice / GIGA:.3g} GB: {nodes:.3g} nodes, {form}"
    if teaching is not None:
        weights = 4 * teaching.total("parameters")
        largest = max(teacher.longest_activations for teacher in teaching.teachers)
        passing = part * TEACHER_SHARE * largest * batch.value
        total += weights + passing
        formula += (
            f" + teachers {weights / GIGA:.3g} GB, their activations "
            f"{passing / GIGA:.3g} GB"
        )
    return Figure(total, formula)


def training_disk(model: Model, settings: Settings) -> Figure:
    """Bytes of an experiment folder: epochs kept, averages, checkpoint.pth.

    An upper bound: an epoch may be among the best by several criteria.
    """
    kept = settings.criteria * settings.keep_nbest_models + 1
    copies = min(kept, settings.max_epoch)
    averages = settings.criteria
    values = copies + averages + 1 + settings.optimiser_values
    return Figure(
        4 * model.parameters * values,
        f"4 bytes x {model.parameters / 1e6:.4g} M x ({copies} epochs + {averages} "
        f"averages + checkpoint.pth {1 + settings.optimiser_values})",
    )
