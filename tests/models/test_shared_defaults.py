"""Default arguments that ESPnet shares between the models of a process."""

from __future__ import annotations

import copy
import importlib
import importlib.resources
import inspect
import pkgutil
from collections.abc import Iterator

import pytest
import yaml
from espnet2.asr_transducer.encoder.encoder import Encoder

from espnet_kd.models.espnet_versions import clear_shared_defaults
from espnet_kd.planning.model_costs import Speech, of_config
from espnet_kd.teacher.decoding import TeacherDecoder
from tests.models.encoders import ENCODERS, write_model
from tests.tasks.recipe import CONFORMER, KINDS, Recipe, load_stock, merged, teachers

PACKAGES = (
    "espnet2.asr",
    "espnet2.asr_transducer",
    "espnet2.layers",
    "espnet2.lm",
    "espnet2.tasks",
)
WITHOUT_INPUT = {key: CONFORMER[key] for key in ("main_conf", "body_conf")}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe(tmp_path_factory.mktemp("recipe"))


def fresh() -> None:
    """Reset by hand, as in a new process."""
    inspect.signature(Encoder.__init__).parameters["input_conf"].default.clear()


@pytest.fixture(autouse=True)
def cleared() -> Iterator[None]:
    """A test's leftovers do not reach other tests."""
    fresh()
    yield
    fresh()


def of_width(width: int) -> dict:
    """An encoder of `asr_transducer` with ESPnet's default input."""
    body = [dict(CONFORMER["body_conf"][0], hidden_size=width)]
    return dict(WITHOUT_INPUT, body_conf=body)


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> str:
    """`asr_transducer` without `input_conf`."""
    task, config = KINDS["asr_transducer"]
    config = dict(config, encoder_conf=WITHOUT_INPUT)
    monkeypatch.setitem(KINDS, "without_input", (task, config))
    return "without_input"


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch):
    """Recipe.task looks up the kind; the stand-alone task has this one's models."""
    monkeypatch.setattr(
        Recipe,
        "task",
        lambda self, kind, stock=False, found=Recipe.task: found(
            self, "asr_transducer" if kind == "without_input" else kind, stock
        ),
    )


def size(model) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.usefixtures("task")
def test_a_student_narrower_than_its_teacher_trains(recipe: Recipe, kind: str):
    """The preset one_best_path; widths 16 (student) and 32 (teacher)."""
    teacher = recipe.teacher(kind, encoder_conf=of_width(32))
    path = importlib.resources.files("espnet_kd.shipped.kd") / "one_best_path.yaml"
    preset = yaml.safe_load(path.read_text())["kd_conf"]
    fresh()
    folder = recipe.train(
        kind,
        "student",
        encoder_conf=of_width(16),
        kd_conf=preset,
        **teachers(teacher),
    )
    log = yaml.safe_load((folder / "config.yaml").read_text())
    assert log["encoder_conf"]["body_conf"][0]["hidden_size"] == 16
    assert (folder / "1epoch.pth").is_file()


@pytest.mark.usefixtures("task")
def test_each_model_gets_its_own_sizes(recipe: Recipe, kind: str):
    """For each of our functions that build models."""
    build = recipe.build
    small = size(build(kind, stock=True, encoder_conf=of_width(16)))
    fresh()
    large = size(build(kind, stock=True, encoder_conf=of_width(32)))
    # In stock ESPnet the next model gets the input of the previous one.
    assert size(build(kind, stock=True, encoder_conf=of_width(16))) != small

    wide = recipe.teacher(kind, "wide", encoder_conf=of_width(32))
    fresh()
    narrow = recipe.teacher(kind, "narrow", encoder_conf=of_width(16))
    for _ in range(2):
        for model, expected in ((wide, large), (narrow, small)):
            decoder = TeacherDecoder(*model, dict(beam_size=2))
            assert size(decoder.speech2text.asr_model) == expected
        assert size(build(kind, encoder_conf=of_width(32))) == large
        assert size(build(kind, encoder_conf=of_width(16))) == small


@pytest.mark.usefixtures("task")
def test_plan_counts_the_requested_model(recipe: Recipe, tmp_path, kind: str):
    def planned(width: int):
        config = tmp_path / "train.yaml"
        options = recipe.config(kind, encoder_conf=of_width(width))
        kept = ("encoder_conf", "decoder", "decoder_conf", "joint_network_conf")
        config.write_text(yaml.safe_dump({name: options[name] for name in kept}))
        return of_config(config, 8, Speech(seconds=1.0, longest=1.0))

    alone = {}
    for width in (16, 32):
        fresh()
        alone[width] = planned(width)
    assert alone[16].parameters < alone[32].parameters
    for width in (16, 32, 16):
        assert planned(width) == alone[width]


# -------------------------------------------------------- other mutable defaults


def mutable_defaults() -> dict[str, object]:
    """Name of function and argument -> its default, a dict, list or set."""
    found = {}
    for package in map(importlib.import_module, PACKAGES):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            try:
                module = importlib.import_module(info.name)
            except Exception:  # needs a package that is not installed; not built here
                continue
            for owner in [module, *_classes(module)]:
                for name, function in _functions(owner):
                    for parameter in inspect.signature(function).parameters.values():
                        if isinstance(parameter.default, (dict, list, set)):
                            key = (
                                f"{info.name}.{owner.__name__}.{name}.{parameter.name}"
                            )
                            found[key] = parameter.default
    return found


def _classes(module) -> list[type]:
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__
    ]


def _functions(owner) -> Iterator[tuple[str, object]]:
    for name, value in vars(owner).items():
        function = inspect.unwrap(getattr(value, "__func__", value))
        if inspect.isfunction(function):
            yield name, function


def test_no_other_default_is_written_into(recipe: Recipe):
    """After building and running every model that needs no download."""
    shared = mutable_defaults()
    assert len(shared) > 30
    known = f"{Encoder.__module__}.Encoder.__init__.input_conf"
    assert known in shared
    before = copy.deepcopy(shared)
    for number, (name, conf) in enumerate(ENCODERS):
        load_stock(write_model(recipe, f"model{number}", name, conf))
    for each in ("hybrid", "transducer", "attention", "asr_transducer"):
        model = recipe.build(each, stock=True).train()
        model(**recipe.batch())[0].backward()
    decoders = {
        "rnn": dict(num_layers=1, hidden_size=12),
        "lightweight_conv": None,
        "dynamic_conv": None,
    }
    for name, conf in decoders.items():
        conf = conf or dict(
            attention_heads=2,
            linear_units=12,
            num_blocks=1,
            conv_wshare=2,
            conv_kernel_length=[3],
        )
        options = merged(KINDS["attention"][1], {})
        options.update(decoder=name, decoder_conf=conf)
        _build("attention", recipe, options)
    blocks = ("branchformer", "ebranchformer", "conv1d")
    for block, decoder in zip(blocks, ("stateless", "mega", "stateless")):
        _build_blocks(recipe, block, decoder)
    changed = {name for name, value in shared.items() if value != before[name]}
    assert changed == {known}
    clear_shared_defaults()
    assert shared == before


def _build(kind: str, recipe: Recipe, options: dict) -> None:
    task = recipe.task(kind, stock=True)
    args = task.get_parser().parse_args(recipe.options(kind, "build"))
    for name, value in options.items():
        setattr(args, name, copy.deepcopy(value))
    task.build_model(args)


def _build_blocks(recipe: Recipe, block: str, decoder: str) -> None:
    """Encoder blocks and decoders of `asr_transducer`."""
    bodies = {
        "branchformer": dict(
            hidden_size=12, linear_size=12, heads=2, conv_mod_kernel_size=3
        ),
        "ebranchformer": dict(
            hidden_size=12,
            linear_size=12,
            heads=2,
            conv_mod_kernel_size=3,
            depthwise_conv_kernel_size=3,
        ),
        "conv1d": dict(output_size=12, kernel_size=3),
    }
    decoders = {
        "stateless": dict(embed_size=12),
        "mega": dict(block_size=12, linear_size=12, qk_size=8, v_size=8, num_heads=2),
    }
    fresh()
    options = dict(
        encoder_conf=dict(body_conf=[dict(block_type=block, **bodies[block])]),
        decoder=decoder,
        decoder_conf=decoders[decoder],
    )
    _build("asr_transducer", recipe, options)
