"""Checks that the models, tokens and losses of a run of kd.sh fit each other, as far as
their configurations show. Messages are those that training would give, days later."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import humanfriendly

from espnet_kd.config.kd_conf import KDConf, parse_kd_conf
from espnet_kd.config.presets import read_preset
from espnet_kd.distill.compatibility import (
    check_token_lists,
    compares_frames,
    strides_to_common_rate,
    with_known_nodes,
)
from espnet_kd.models.config import (
    frame_rate_of,
    nodes_of_config,
    read_config,
    read_token_list,
    reads_audio,
    sampling_rate_of,
    task_of,
)
from espnet_kd.planning.chain import Chain, is_ours
from espnet_kd.planning.configurations import (
    Described,
    kd_student,
    named,
    or_none,
    sparse_student,
    student_of,
    teachers_of,
    trains_teacher,
)


def tasks(c: Chain) -> Iterator[str]:
    """Models of unsupported tasks, and configurations of another task than given."""
    if c.asks_for(6, 10, 11):
        for index, folder in enumerate(c.teachers):
            path = Path(folder, "config.yaml")
            if path.exists() and not (index == 0 and trains_teacher(c)):
                with named("teacher_exp") as problems:
                    task_of(path)
                yield from problems
    student = student_of(c)
    if student and c.asks_for(4, 9, 10):
        yield from _wrong_task(student, "asr_config", "asr_task")
    for teacher in teachers_of(c):
        if not teacher.is_trained:
            yield from _wrong_task(teacher, "teacher_asr_config", "teacher_task")


def _wrong_task(model: Described, option: str, task_option: str) -> Iterator[str]:
    # Only the stand-alone transducer task defines its encoder block by block.
    has_blocks = "body_conf" in (model.config.get("encoder_conf") or {})
    if has_blocks != (model.task == "asr_transducer"):
        found = "found" if has_blocks else "not found"
        yield (
            f"--{option} {model.path}: encoder_conf.body_conf {found}, so it is a "
            f"configuration of task {'asr_transducer' if has_blocks else 'asr'}; give "
            f"it as --{task_option}, which is {model.task}"
        )


def token_lists(c: Chain) -> Iterator[str]:
    """Invalid token lists of the student, and different ones of teachers and LM."""
    path = Path(c.token_list)
    is_made_here = 3 in c.stages and is_ours(c.token_dir)
    if is_made_here or not path.is_file():
        return
    tokens = read_token_list(path)
    if c.asks_for(4, 5, 8, 9, 10, 11):
        yield from _bad_tokens(path, tokens)
    teachers = [each for each in teachers_of(c) if each.is_trained]
    conf = or_none(lambda: _conf(kd_student(c)))
    if c.asks_for(10) and conf is not None and conf.losses:
        yield from _unlike(tokens, teachers)
    if c.asks_for(11):
        yield from _unlike(tokens, teachers[:1])
    lm = Path(c.lm_exp, "config.yaml")
    if c.asks_for(12) and c.use_lm == "true" and lm.is_file():
        with named("lm_exp") as problems:
            if read_config(lm).get("token_list") != tokens:
                yield (
                    f"{lm}: its token list differs from {path}; train an LM with that "
                    "list, or give --use_lm false"
                )
        yield from problems


def _bad_tokens(path: Path, tokens: Sequence[str]) -> Iterator[str]:
    if not tokens or tokens[0] != "<blank>":
        yield f"{path}: its first token must be <blank>"
    if "<unk>" not in tokens:
        yield f"{path}: <unk> must be among its tokens"
    seen: set[str] = set()
    twice = [token for token in tokens if token in seen or seen.add(token)]
    if twice:
        yield f"{path}: the token {twice[0]!r} occurs twice"


def _unlike(tokens: Sequence[str], teachers: Sequence[Described]) -> Iterator[str]:
    for teacher in teachers:
        theirs = teacher.config.get("token_list")
        if not isinstance(theirs, list):
            yield f"{teacher.path}: token_list is missing; give ESPnet's config.yaml"
            continue
        try:
            check_token_lists(tokens, theirs, teacher.name)
        except ValueError as error:
            yield str(error)


def distillation(c: Chain) -> Iterator[str]:
    """Losses of stage 10 that do not fit student, teachers, GPUs or a split set."""
    if not c.asks_for(10) or or_none(lambda: read_preset(c.kd_config)) is None:
        return
    teachers = teachers_of(c)
    with named(_given(c, "kd_config", "kd_args")) as problems:
        student = kd_student(c)
        conf = _conf(student)
        if student_of(c) and len(teachers) == len(c.teachers) > 0:
            _check_fit(c, conf, [student, *teachers])
        yield from _alone(c, conf)
    yield from problems


def sparse(c: Chain) -> Iterator[str]:
    """Faults of stage 11: a preset without pruning, or losses whose nodes the teacher
    (also the student) does not have."""
    preset = or_none(lambda: read_preset(c.sparse_config))
    if not c.asks_for(11) or preset is None:
        return
    if not (preset.get("kd_conf") or {}).get("pruning"):
        yield (
            f"--sparse_config {c.sparse_config}: kd_conf.pruning is missing, which is "
            "needed to make a student sparse; see conf/kd/sparse.yaml"
        )
    teachers = teachers_of(c)
    if len(teachers) == len(c.teachers) > 0:
        with named(_given(c, "sparse_config", "sparse_args")) as problems:
            student = sparse_student(c, teachers[0])
            _check_fit(c, _conf(student), [student, *teachers])
        yield from problems


def _given(c: Chain, config: str, args: str) -> str:
    """The possible origin of a fault of a preset, for `named`."""
    words = getattr(c, args)
    return f"{config} {getattr(c, config)}" + (f", --{args} {words}" if words else "")


def _conf(model: Described) -> KDConf:
    """Its `kd_conf`."""
    return parse_kd_conf(model.config.get("kd_conf") or {})


def _check_fit(c: Chain, conf: KDConf, models: Sequence[Described]) -> None:
    """ValueError if a named teacher does not exist, a model lacks nodes, or frame rates
    cannot be matched."""
    _check_indices(conf, len(c.teachers))
    if not conf.needs_teacher:
        return
    have = {each.name: nodes_of_config(each.config, each.task) for each in models}
    if not compares_frames(with_known_nodes(conf, have)):
        return
    rate = _rate(c)
    if rate is None:
        return
    rates = {m.name: frame_rate_of(m.config, m.task, rate) for m in models}
    known = {name: each for name, each in rates.items() if each}
    if known:
        strides_to_common_rate(known)


def _check_indices(conf: KDConf, teachers: int) -> None:
    named = {f"hidden[{n}]": pair for n, pair in enumerate(conf.hidden)}
    if conf.init_from_teacher is not None:
        named["init_from_teacher"] = conf.init_from_teacher
    for name, each in named.items():
        if each.teacher_index >= teachers:
            raise ValueError(
                f"kd_conf.{name}.teacher_index: {each.teacher_index} must be below "
                f"{teachers}, the number of teachers"
            )


def _alone(c: Chain, conf: KDConf) -> Iterator[str]:
    """Full-sum KD compares the entries of one batch on one GPU."""
    if not any(loss.nodes == "sequence" for loss in conf.possible_losses):
        return
    for option in ("ngpu", "num_splits_asr"):
        value = getattr(c, option)
        if value.isdigit() and int(value) > 1:
            yield (
                f"--{option} {value}: nodes: sequence ({c.kd_config}) "
                "compares the hypotheses of an utterance, which must be in one batch "
                f"of one process; give --{option} 1"
            )


def _rate(c: Chain) -> int | None:
    """Sampling rate in Hz; None if --fs is invalid, which is reported separately."""
    try:
        return humanfriendly.parse_size(c.fs)
    except humanfriendly.InvalidSize:
        return None


def sampling_rate(c: Chain) -> Iterator[str]:
    """--fs that is not a number."""
    if c.asks_for(2, 4, 5, 9, 10, 11) and not _rate(c):
        yield f"--fs {c.fs}: must be a number of Hz, for example 16k or 16000"


def audio(c: Chain) -> Iterator[str]:
    """Teachers whose input differs from the student's, and wrong teacher weights."""
    if not c.asks_for(6, 10, 11):
        return
    weights = c.teacher_weights.split()
    if weights and len(weights) != len(c.teachers):
        yield (
            f"--teacher_weights: {len(weights)} weights for {len(c.teachers)} "
            "teachers; give one for each, or none for equal weights"
        )
    if not all(_is_positive(weight) for weight in weights):
        yield (
            f"--teacher_weights {c.teacher_weights}: must be numbers above 0; leave a "
            "teacher out instead"
        )
    rate = _rate(c)
    for teacher in teachers_of(c):
        if not teacher.is_trained:
            continue
        if not reads_audio(teacher.config):
            yield (
                f"input_size: {teacher.name} reads features, but student and teachers "
                "share a waveform; give a teacher that was trained from raw audio"
            )
        elif rate and sampling_rate_of(teacher.config) != rate:
            yield (
                f"frontend_conf.fs: {teacher.name} was trained on "
                f"{sampling_rate_of(teacher.config)} Hz audio, --fs {c.fs} is {rate} "
                "Hz; both must read the same waveform"
            )


def _is_positive(weight: str) -> bool:
    try:
        return 0 < float(weight) < math.inf
    except ValueError:
        return False
