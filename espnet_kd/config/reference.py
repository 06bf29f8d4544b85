"""Descriptions of all fields of `kd_conf`: `--help` of training, and docs/kd_conf.md.

    python -m espnet_kd.config.reference > docs/kd_conf.md

updates that page after a field, a name or a help text has changed.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from espnet_kd.config.fields import Option, Section, listed, option_of
from espnet_kd.config.hidden import HiddenConf
from espnet_kd.config.init import InitConf
from espnet_kd.config.kd_conf import KDConf
from espnet_kd.config.losses import LOSSES, fields_of
from espnet_kd.config.pruning import PruningConf
from espnet_kd.config.schedules import Schedule

# Options of the commands that recipes call which no preset, recipe or row of results
# uses; those of `kd_conf` are marked where they are defined.
EXPERIMENTAL_OPTIONS: dict[str, tuple[str, ...]] = {
    "kd_set": (
        "posterior_scale",
        "max_wer",
        "max_expected_wer",
        "min_posterior",
        "min_length_ratio",
        "max_length_ratio",
    ),
    "teacher_decode": ("cuts", "num_threads"),
    "report": ("unit", "scorer", "resamples", "confidence"),
    "export": ("max_utterances", "repeats"),
    "prepare_fsdd": ("snr",),
    "prepare_librispeech": ("manifest_dir", "parts", "check_counts", "num_jobs"),
    "prepare_mini": ("snr",),
    "prepare_switchboard": ("num_dev", "check_counts", "num_jobs"),
    "prepare_wsj": ("transcripts", "check_counts", "num_jobs"),
}
WIDTH = 88
LOSSES_PATH = "kd_conf.losses[]"
ALL = "all"  # nodes


@dataclass(frozen=True)
class Row:
    """A field as displayed; `nodes` is empty if it does not depend on them."""

    name: str
    default: str
    option: Option
    nodes: str = ""


@dataclass(frozen=True)
class Part:
    """A mapping within `kd_conf`: its path, description and fields."""

    path: str
    about: str
    rows: tuple[Row, ...]
    is_experimental: bool = False


def parts() -> list[Part]:
    """The whole of `kd_conf`."""
    return [
        _part("kd_conf", KDConf, "What is compared, and how strongly."),
        Part(
            LOSSES_PATH,
            "A list, one entry for each loss. `nodes` is where student and teachers "
            "are compared: one of the kinds above, or a list of them, which means a "
            "loss at each kind that all models have. The other fields depend on the "
            "nodes; a list accepts the fields that all its kinds have.",
            _rows_of_losses(),
        ),
        _part(
            "kd_conf.hidden[]",
            HiddenConf,
            "A list, one entry for each pair of layers that are compared frame by "
            "frame. Both are sub-modules of the encoders, named as in "
            "`model.named_modules()`. Where the widths differ, a linear projection of "
            "the student's output is trained; it is not part of the saved student.",
        ),
        _part(
            "kd_conf.pruning",
            PruningConf,
            "How sparse the student becomes, and when. Updates are steps of the "
            "optimiser, counted from the start of training.",
        ),
        _part(
            "kd_conf.init_from_teacher",
            InitConf,
            "Which layers of which teacher the student starts from.",
        ),
        _part(
            "schedule",
            Schedule,
            "A mapping in place of a number, which goes from `start` to `end` with the "
            "updates of the student.",
        ),
    ]


def help_text() -> str:
    """`kd_conf` in plain text, for `--help`."""
    lines = [
        "fields of kd_conf, with defaults and allowed values (docs/kd_conf.md); give",
        "them in the configuration, or as --kd_conf rate=pool --kd_conf pruning.end=9",
    ]
    for part in parts():
        mark = " (experimental)" if part.is_experimental else ""
        lines += ["", f"{part.path}{mark}:"]
        if part.path == LOSSES_PATH:
            for kind in LOSSES.values():
                mark = " (experimental)" if kind.is_experimental else ""
                about = (
                    f"nodes: {kind.nodes}{mark}: {kind.compared}; needs {kind.needs}"
                )
                lines += _wrapped(about, "  ", "      ")
        lines += _wrapped(part.about, "  ")
        for row in part.rows:
            at = f" at {row.nodes}" if row.nodes not in ("", ALL) else ""
            head = f"{row.name} = {row.default} ({row.option.kind}){at}{_mark(row)}"
            lines += _wrapped(head, "  ", "      ")
            lines += _wrapped(row.option.help, "      ")
    return "\n".join(lines) + "\n"


def page() -> str:
    """`kd_conf` in Markdown: docs/kd_conf.md."""
    blocks = [
        "<!-- Written by `python -m espnet_kd.config.reference > docs/kd_conf.md` from "
        "the fields in espnet_kd/config: change those. -->",
        "# `kd_conf`, field by field",
        "Every field of `kd_conf` in a training configuration. [Methods](methods.md) "
        "has the formulas and examples. `python -m espnet_kd.bin.asr_train --help` "
        "prints this page. Fields and names marked † are experimental, see the "
        "[end of the page](#experimental).",
    ]
    for part in parts():
        title = _code(part.path, part.is_experimental)
        blocks.append(f"## {title}")
        if part.path == LOSSES_PATH:
            blocks.append(_table(["nodes", "what is compared", "needs"], _node_rows()))
        blocks.append(part.about)
        blocks.append(_field_table(part))
    blocks += ["## Experimental", *_experimental_blocks()]
    return "\n\n".join(blocks) + "\n"


def experimental() -> list[str]:
    """Paths of the experimental fields, kinds of nodes and choices, for example
    `kd_conf.rate`, `kd_conf.losses.nodes=band` and `kd_conf.losses.reduction=node`;
    `schedule` is any mapping in place of a number."""
    found = [
        f"kd_conf.losses.nodes={n}" for n, c in LOSSES.items() if c.is_experimental
    ]
    for part in parts():
        path = part.path.removesuffix("[]")
        if part.is_experimental:
            found.append(path)
            continue
        for row in part.rows:
            if row.option.experimental is True:
                found.append(f"{path}.{row.name}")
            else:
                names = row.option.experimental or ()
                found += [f"{path}.{row.name}={name}" for name in names]
    return list(dict.fromkeys(found))


def _part(path: str, cls: type[Section], about: str) -> Part:
    rows = (Row(item.name, _default(item), option_of(item)) for item in fields(cls))
    return Part(path, about, tuple(rows), cls.is_experimental)


def _rows_of_losses() -> tuple[Row, ...]:
    """Each field once, with the nodes that have it; once for each kind of nodes if its
    choices depend on them."""
    nodes: dict[tuple[str, str, Option], list[str]] = {}
    for kind in LOSSES.values():
        for name, item in fields_of(kind).items():
            key = name, _default(item), option_of(item)
            nodes.setdefault(key, []).append(kind.nodes)
    order = list(dict.fromkeys(name for name, _, _ in nodes))
    return tuple(
        Row(name, default, known, _at(where))
        for (name, default, known), where in sorted(
            nodes.items(), key=lambda item: order.index(item[0][0])
        )
    )


def _at(nodes: list[str]) -> str:
    missing = [name for name in LOSSES if name not in nodes]
    if not missing:
        return ALL
    return f"{ALL} but {missing[0]}" if len(missing) == 1 else listed(nodes, "and")


def _default(item: Field) -> str:
    if item.default is MISSING:
        return "(required)"
    value: Any = item.default
    return value if isinstance(value, str) else json.dumps(value)


def _mark(row: Row) -> str:
    if row.option.experimental is True:
        return " (experimental)"
    names = row.option.experimental
    return f" (experimental: {', '.join(names)})" if names else ""


def _wrapped(text: str, first: str, then: str | None = None) -> list[str]:
    return textwrap.wrap(
        text.replace("`", ""),
        WIDTH,
        initial_indent=first,
        subsequent_indent=first if then is None else then,
        break_on_hyphens=False,
    )


def _node_rows() -> list[list[str]]:
    return [
        [_code(kind.nodes, kind.is_experimental), kind.compared, kind.needs]
        for kind in LOSSES.values()
    ]


def _field_table(part: Part) -> str:
    has_nodes = any(row.nodes for row in part.rows)
    head = ["field", *(["nodes"] if has_nodes else []), "default", "allowed", "meaning"]
    return _table(
        head,
        [
            [
                _code(row.name, row.option.experimental is True),
                *([row.nodes] if has_nodes else []),
                row.default if row.default == "(required)" else f"`{row.default}`",
                str(row.option.kind),
                row.option.help + _marked_names(row),
            ]
            for row in part.rows
        ],
    )


def _code(name: str, is_experimental: bool) -> str:
    return f"`{name}`" + (" †" if is_experimental else "")


def _marked_names(row: Row) -> str:
    if row.option.experimental in (True, False):
        return ""
    return " † " + ", ".join(f"`{name}`" for name in row.option.experimental)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |"
        for line in lines
    )


def _experimental_blocks() -> list[str]:
    return [
        "No preset, recipe or row of results (`conf/kd`, `egs`) uses these. They are "
        "tested like all others, but their benefit has not been measured here, and "
        "they may change.",
        "\n".join(f"* `{path}`" for path in experimental()),
        "The same holds for these options of commands:",
        "\n".join(
            f"* `{command}`: " + ", ".join(f"`--{name}`" for name in names)
            for command, names in EXPERIMENTAL_OPTIONS.items()
        ),
    ]


if __name__ == "__main__":
    print(page(), end="")
