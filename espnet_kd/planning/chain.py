"""A run of kd.sh: the names that it resolved, and the files that each stage reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from espnet_kd.config.presets import read_preset
from espnet_kd.models.config import TaskName

STAGES = {
    1: "data",
    2: "format and speed perturbation",
    3: "token list",
    4: "statistics",
    5: "teacher training",
    6: "teacher check and decoding",
    7: "soft targets",
    8: "KD training set",
    9: "student without KD",
    10: "student with KD",
    11: "sparse student",
    12: "decoding",
    13: "scoring",
    14: "report",
}


class Input(NamedTuple):
    """A file that a stage reads, and the stages that can make it (may be empty)."""

    path: str
    made_by: tuple[int, ...] = ()

    def is_there(self) -> bool:
        """Whether the file exists; its name, not its folder, may be a pattern."""
        path = Path(self.path)
        return path.exists() or ("*" in path.name and any(path.parent.glob(path.name)))


@dataclass(frozen=True)
class Chain:
    """Options of kd.sh under their names, with defaults. All are text, "" if not set;
    lists are separated by blanks.

    Attributes:
        wanted: numbers of the requested stages.
        data_feats: folder of the formatted sets, dump/raw.
        data_train_sets: training sets before speed perturbation.
        all_sets, eval_sets: sets to format; sets to decode and score.
        token_dir: folder in which stage 3 makes token list and BPE model.
        decode_dir: of the teacher's hypotheses.
        kd_data: folder of the KD set; its shapes are in kd_data + "_shapes".
        option: "NAME VALUE" of options as given, for `planning.options`.
        state: "NUMBER done" or "NUMBER will run", of a dry run.
        fault: faults found by kd.sh itself.
    """

    wanted: str = ""
    data_feats: str = ""
    train_set: str = ""
    teacher_train_set: str = ""
    data_train_sets: str = ""
    valid_set: str = ""
    unlabelled_set: str = ""
    all_sets: str = ""
    eval_sets: str = ""
    fs: str = ""
    token_type: str = ""
    token_dir: str = ""
    token_list: str = ""
    bpemodel: str = ""
    nlsyms_txt: str = ""
    nbpe: str = ""
    asr_task: str = ""
    asr_config: str = ""
    asr_args: str = ""
    asr_exp: str = ""
    asr_stats_dir: str = ""
    feats_normalize: str = ""
    pretrained_model: str = ""
    teacher_task: str = ""
    teacher_asr_config: str = ""
    teacher_asr_args: str = ""
    teacher_exp: str = ""
    teacher_model: str = ""
    teacher_weights: str = ""
    teacher_stats_dir: str = ""
    teacher_inference_config: str = ""
    teacher_inference_args: str = ""
    teacher_nbest: str = ""
    decode_dir: str = ""
    kd_config: str = ""
    kd_args: str = ""
    kd_tag: str = ""
    kd_set_args: str = ""
    kd_data: str = ""
    kd_exp: str = ""
    sparse_config: str = ""
    sparse_args: str = ""
    sparse_exp: str = ""
    sparse_model: str = ""
    inference_config: str = ""
    inference_asr_model: str = ""
    lm_exp: str = ""
    inference_lm: str = ""
    use_lm: str = ""
    use_ngram: str = ""
    ngram_exp: str = ""
    inference_ngram: str = ""
    ngpu: str = ""
    num_splits_asr: str = ""
    nj: str = ""
    gpu_inference: str = ""
    speed_perturb_factors: str = ""
    option: list[str] = field(default_factory=list)
    state: list[str] = field(default_factory=list)
    fault: list[str] = field(default_factory=list)

    @property
    def stages(self) -> list[int]:
        """The requested stages that have something to do."""
        numbers = [int(number) for number in self.wanted.split()]
        return [n for n in numbers if n != 11 or self.sparse_config]

    def asks_for(self, *stages: int) -> bool:
        """Whether at least one of the stages is requested."""
        return not set(stages).isdisjoint(self.stages)

    @property
    def teachers(self) -> list[str]:
        """Their folders."""
        return self.teacher_exp.split()

    @property
    def new_teacher_task(self) -> TaskName:
        """Experiment folder of the teacher that stage 5 trains."""
        return self.teacher_task or self.asr_task

    def is_made(self, file: Input) -> bool:
        """Whether a file exists, or a requested stage makes it."""
        return file.is_there() or self.asks_for(*file.made_by)

    def set(self, name: str, *files: str) -> list[Input]:
        """Files of a formatted set."""
        return [Input(f"{self.data_feats}/{name}/{file}", (2,)) for file in files]

    def tokens(self) -> list[Input]:
        """Token list and BPE model, which stage 3 makes in its own folder, and for
        characters the symbols not to split: ESPnet continues if they are missing."""
        paths = [self.token_list] + [self.bpemodel] * (self.token_type == "bpe")
        files = [
            Input(path, (3,) if str(Path(path).parent) == self.token_dir else ())
            for path in paths
        ]
        return files + self.symbols() * (self.token_type == "char")

    def symbols(self) -> list[Input]:
        """--nlsyms_txt; local/data.sh may make it."""
        given = self.nlsyms_txt not in ("", "none")
        return [Input(self.nlsyms_txt, (1,))] if given else []

    def teacher(self, index: int) -> list[Input]:
        """Configuration and checkpoint of a teacher; stage 5 trains the first."""
        made_by = (5,) if index == 0 and self.teacher_asr_config else ()
        folder = self.teachers[index]
        names = ("config.yaml", self.teacher_model)
        return [Input(f"{folder}/{name}", made_by) for name in names]

    def systems(self) -> list[tuple[str, str, int]]:
        """Folder, checkpoint and training stage of all models to decode."""
        found = [(each, self.teacher_model, 5) for each in self.teachers]
        found.append((self.asr_exp, self.inference_asr_model, 9))
        if self.kd_tag:
            found.append((self.kd_exp, self.inference_asr_model, 10))
        if self.sparse_config:
            model = self.sparse_model or self.teacher_model
            found.append((self.sparse_exp, model, 11))
        return found


def inputs(chain: Chain, stage: int) -> list[Input]:
    """The files that a stage reads, besides configurations."""
    return list(dict.fromkeys(_INPUTS.get(stage, _none)(chain)))


def is_ours(folder: str) -> bool:
    """Whether the content of a folder was started by kd.sh."""
    return any(Path(folder, mark).exists() for mark in (".command", ".done"))


def is_foreign(folder: str, file: str) -> bool:
    """Whether a folder holds a file made by asr.sh, which kd.sh leaves unchanged."""
    return Path(folder, file).exists() and not is_ours(folder)


def _none(chain: Chain) -> Iterator[Input]:
    yield from ()


def _data(c: Chain) -> Iterator[Input]:
    yield Input("local/data.sh")


def _format(c: Chain) -> Iterator[Input]:
    perturbed = {f"{name}_sp": name for name in c.data_train_sets.split()}
    for name in c.all_sets.split():
        if not is_foreign(f"{c.data_feats}/{name}", "wav.scp"):
            yield Input(f"data/{perturbed.get(name, name)}/wav.scp", (1,))


def _token_list(c: Chain) -> Iterator[Input]:
    if not is_foreign(c.token_dir, Path(c.token_list).name):
        yield from c.set(c.teacher_train_set, "text")
        yield from c.symbols()


def _statistics(c: Chain) -> Iterator[Input]:
    for folder, name in (
        (c.asr_stats_dir, c.train_set),
        (c.teacher_stats_dir, c.teacher_train_set),
    ):
        if not is_foreign(folder, "train/speech_shape"):
            yield from c.set(name, "wav.scp")
            yield from c.set(c.valid_set, "wav.scp")
            yield from c.tokens()


def _training(
    c: Chain, exp: str, data: list[Input], shapes: list[Input], stats: str
) -> Iterator[Input]:
    if is_foreign(exp, "config.yaml"):
        return
    yield from data
    yield from c.set(c.valid_set, "wav.scp")
    yield from c.tokens()
    yield from shapes
    yield from _shapes(c, f"{stats}/valid", 4)


def _shapes(c: Chain, folder: str, stage: int) -> list[Input]:
    names = ("speech_shape", f"text_shape.{c.token_type}")
    return [Input(f"{folder}/{name}", (stage,)) for name in names]


def _normalisation(c: Chain, stats: str) -> list[Input]:
    """Statistics to normalise features, unless the model's configuration has them."""
    is_asked = c.feats_normalize == "global_mvn"
    return [Input(f"{stats}/train/feats_stats.npz", (4,))] * is_asked


def _teacher(c: Chain) -> Iterator[Input]:
    if c.teachers:
        stats = c.teacher_stats_dir
        data = c.set(c.teacher_train_set, "wav.scp", "text")
        shapes = _shapes(c, f"{stats}/train", 4) + _normalisation(c, stats)
        yield from _training(c, c.teachers[0], data, shapes, stats)


def _teacher_decoding(c: Chain) -> Iterator[Input]:
    if c.teachers:
        yield from c.teacher(0)
    labelled = [] if labelled_targets(c) == "reference" else [c.train_set]
    for name in (c.valid_set, *labelled, *c.unlabelled_set.split()):
        yield from c.set(name, "wav.scp")


def _kd_set(c: Chain) -> Iterator[Input]:
    decoded = c.unlabelled_set.split()
    if labelled_targets(c) != "reference":
        decoded.append(c.train_set)
    for name in decoded:
        yield Input(f"{c.decode_dir}/{name}/hypotheses.*.jsonl", (6,))
    yield from c.set(c.train_set, "wav.scp", "text")
    yield from c.tokens()
    yield from c.symbols()


def _student(c: Chain) -> Iterator[Input]:
    data = c.set(c.train_set, "wav.scp", "text")
    stats = c.asr_stats_dir
    shapes = _shapes(c, f"{stats}/train", 4) + _normalisation(c, stats)
    yield from _training(c, c.asr_exp, data, shapes, stats)
    yield from _pretrained(c)


def _kd_student(c: Chain) -> Iterator[Input]:
    for index in range(len(c.teachers)):
        yield from c.teacher(index)
    data = [Input(f"{c.kd_data}/wav.scp", (8,))]
    stats = c.asr_stats_dir
    shapes = _shapes(c, f"{c.kd_data}_shapes", 8) + _normalisation(c, stats)
    yield from _training(c, c.kd_exp, data, shapes, stats)
    yield from _pretrained(c)


def _pretrained(c: Chain) -> Iterator[Input]:
    if c.pretrained_model:
        yield Input(c.pretrained_model.split(":")[0])


def _sparse_student(c: Chain) -> Iterator[Input]:
    for index in range(len(c.teachers)):
        yield from c.teacher(index)
    data = c.set(c.teacher_train_set, "wav.scp", "text")
    shapes = _shapes(c, f"{c.teacher_stats_dir}/train", 4)
    yield from _training(c, c.sparse_exp, data, shapes, c.teacher_stats_dir)


def _decoding(c: Chain) -> Iterator[Input]:
    for name in c.eval_sets.split():
        yield from c.set(name, "wav.scp")
    if c.use_lm == "true" and Path(c.lm_exp, "config.yaml").exists():
        yield Input(f"{c.lm_exp}/{c.inference_lm}")
    if c.use_ngram == "true":
        yield Input(f"{c.ngram_exp}/{c.inference_ngram}")


def _scoring(c: Chain) -> Iterator[Input]:
    for name in c.eval_sets.split():
        yield from c.set(name, "text")
    yield from c.symbols()


_INPUTS = {
    1: _data,
    2: _format,
    3: _token_list,
    4: _statistics,
    5: _teacher,
    6: _teacher_decoding,
    8: _kd_set,
    9: _student,
    10: _kd_student,
    11: _sparse_student,
    12: _decoding,
    13: _scoring,
    14: _scoring,
}


def labelled_targets(chain: Chain) -> str:
    """The targets of labelled audio, read from preset and options as by kd.sh."""
    if not chain.kd_config:
        return "both"
    given = chain.kd_set_args.replace("=", " ").split()
    if "--labelled_targets" in given[:-1]:
        return given[given.index("--labelled_targets") + 1]
    try:
        section = read_preset(chain.kd_config).get("kd_set") or {}
    except (OSError, ValueError):
        return "reference"  # the preset is reported as a separate fault
    return section.get("labelled_targets", "reference")
