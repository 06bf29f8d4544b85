"""Costs of each stage of kd.sh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from espnet_kd.planning import data_sizes, training
from espnet_kd.planning.machines import CPU_CORE, Machine
from espnet_kd.planning.model_costs import Model, Speech
from espnet_kd.planning.search import Search, decoding_time
from espnet_kd.planning.training import Figure, Settings, Teaching

# Seconds of one core per second of audio, to read and write it, or to read it and
# compute features. Measured: benchmarks/plan_check.py.
FORMAT_SECONDS = 0.001
FEATURE_SECONDS = 0.001


@dataclass(frozen=True)
class Recipe:
    """The settings of a recipe; audio in seconds, before speed perturbation.

    Attributes:
        labelled, unlabelled: training audio of the student.
        teacher_labelled: training audio of the teacher.
        evaluated: of validation and test sets.
        factors: of speed perturbation; (1.0,) for none.
        is_whole: audio has one file per utterance at the right rate.
        teachers, student: models, with their training settings. The first teacher
            decodes, and is made sparse.
        labelled_targets, nbest: of the KD set, as in `espnet_kd.bin.kd_set`.
        kept_nbest: hypotheses that teacher decoding keeps.
        teaching: of the student with KD; None: no teacher in memory.
        sparse, sparse_teaching: settings of stage 11; None: it is not run.
        gpu, ngpu, jobs: machines; jobs run on cores of CPUs.
        gpu_inference: decode on GPUs.
        search, teacher_search: of the students and of the teacher.
    """

    labelled: float
    unlabelled: float
    teacher_labelled: float
    evaluated: float
    factors: Sequence[float]
    is_whole: bool
    speech: Speech
    teachers: Sequence[Model]
    student: Model
    teacher_settings: Sequence[Settings]
    student_settings: Settings
    gpu: Machine
    ngpu: int = 1
    jobs: int = 32
    gpu_inference: bool = False
    utilisation: float = training.UTILISATION
    labelled_targets: str = "reference"
    nbest: int = 1
    kept_nbest: int = 4
    search: Search = Search()
    teacher_search: Search = Search()
    teaching: Teaching | None = None
    sparse: Settings | None = None
    sparse_teaching: Teaching | None = None


@dataclass
class Stage:
    """A row of the plan. Bytes, and seconds summed over all GPUs or cores."""

    number: int
    task: str
    disk: Figure | None = None
    gpu: Figure | None = None
    cpu: Figure | None = None
    memory: Figure | None = None
    machines: int = 1  # GPUs or jobs in parallel
    notes: list[str] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Seconds, if all machines are free and none waits for others."""
        return sum(f.value for f in (self.gpu, self.cpu) if f) / self.machines


def plan(recipe: Recipe) -> list[Stage]:
    """The stages with costs, in order."""
    r = recipe
    epoch = data_sizes.perturbed(r.labelled, r.factors)  # audio of the student
    taught = data_sizes.perturbed(r.teacher_labelled, r.factors)
    stages = [_format(r), _statistics(r, epoch)]
    for teacher, settings in zip(r.teachers, r.teacher_settings):
        task = f"teacher {teacher.name}"
        stages.append(_training(5, task, r, teacher, settings, taught))
    to_decode = r.unlabelled + (epoch if r.labelled_targets != "reference" else 0)
    stages += [_decode(r, to_decode), _targets(), _kd_set(r, epoch)]
    stages.append(_training(9, "student", r, r.student, r.student_settings, epoch))
    targets = {"reference": 1, "hypotheses": r.nbest, "both": r.nbest + 1}
    with_kd = epoch * targets[r.labelled_targets] + r.unlabelled * r.nbest
    stages.append(
        _training(
            10, "student with KD", r, r.student, r.student_settings, with_kd, r.teaching
        )
    )
    if r.sparse is not None:
        stages.append(
            _training(
                11,
                "sparse student",
                r,
                r.teachers[0],
                r.sparse,
                taught,
                r.sparse_teaching,
            )
        )
    stages.append(_evaluate(r))
    return stages


def _format(r: Recipe) -> Stage:
    own = 0 if r.teacher_labelled == r.labelled else r.teacher_labelled
    plain = data_sizes.formatted_audio(
        r.unlabelled + r.evaluated, r.speech, (1,), r.is_whole
    )
    train = data_sizes.formatted_audio(
        r.labelled + own, r.speech, r.factors, r.is_whole
    )
    disk = Figure(
        plain.value + train.value,
        f"train {train.formula}; other sets {plain.formula}",
    )
    written = disk.value / (2 * r.speech.rate)
    cpu = Figure(
        written * FORMAT_SECONDS, f"{written / 3600:.4g} h written x {FORMAT_SECONDS:g}"
    )
    return Stage(2, "format, speed perturbation", disk, cpu=cpu, machines=1)


def _statistics(r: Recipe, epoch: float) -> Stage:
    cpu = Figure(
        epoch * FEATURE_SECONDS, f"{epoch / 3600:.4g} h read x {FEATURE_SECONDS:g}"
    )
    return Stage(4, "statistics", cpu=cpu, machines=r.jobs)


def _training(
    number_of_stage: int,
    task: str,
    r: Recipe,
    model: Model,
    settings: Settings,
    audio: float,
    teaching: Teaching | None = None,
) -> Stage:
    disk = training.training_disk(model, settings)
    time = training.training_time(
        model, settings, r.speech, audio, r.gpu, r.utilisation, teaching
    )
    stage = Stage(
        number_of_stage,
        task,
        disk,
        gpu=time,
        memory=training.training_memory(model, settings, r.speech, r.ngpu, teaching),
        machines=r.ngpu,
    )
    if stage.memory.value > r.gpu.memory:
        stage.notes.append(
            f"stage {number_of_stage}: {stage.memory.value / 1e9:.0f} GB do not fit "
            f"{r.gpu.name} ({r.gpu.memory / 1e9:g} GB): give less batch_bins and more "
            "accum_grad, or more GPUs"
        )
    return stage


def _search(r: Recipe, model: Model, audio: float, how: Search) -> Figure:
    machine = r.gpu if r.gpu_inference else CPU_CORE
    return decoding_time(model, r.speech, audio, how, machine)


def _on(r: Recipe, time: Figure) -> dict:
    if r.gpu_inference:
        return {"gpu": time, "machines": r.ngpu}
    return {"cpu": time, "machines": r.jobs}


def _decode(r: Recipe, audio: float) -> Stage:
    audio += r.evaluated / 2  # the validation set
    return Stage(
        6,
        "teacher decoding",
        data_sizes.hypotheses(audio, r.speech, r.kept_nbest),
        **_on(r, _search(r, r.teachers[0], audio, r.teacher_search)),
    )


def _targets() -> Stage:
    return Stage(7, "soft targets: none stored, teachers run in stage 10")


def _kd_set(r: Recipe, epoch: float) -> Stage:
    targets = {"reference": 1, "hypotheses": r.nbest, "both": r.nbest + 1}
    labelled = data_sizes.kd_set(epoch, r.speech, targets[r.labelled_targets])
    unlabelled = data_sizes.kd_set(r.unlabelled, r.speech, r.nbest)
    return Stage(
        8,
        "KD set (names audio, no copy)",
        Figure(
            labelled.value + unlabelled.value,
            f"labelled {labelled.formula}; unlabelled {unlabelled.formula}",
        ),
    )


def _evaluate(r: Recipe) -> Stage:
    tested = r.evaluated / 2
    systems = [(1, teacher, r.teacher_search) for teacher in r.teachers]
    systems.append((2, r.student, r.search))
    if r.sparse is not None:
        systems.append((1, r.teachers[0], r.teacher_search))
    times = [(n, _search(r, model, tested, how)) for n, model, how in systems]
    total = Figure(
        sum(n * time.value for n, time in times),
        "; ".join(f"{n} x {time.formula}" for n, time in times),
    )
    return Stage(12, "decoding of all systems", **_on(r, total))
