"""A table of the layers of a sparse system."""

from __future__ import annotations

from espnet_kd.report.costs import Layer, MultiplyAdds, Weights, total_of
from espnet_kd.report.render import table

MOST_ROWS = 60  # layers of longer models are grouped by prefixes of their names
_TITLES = (
    "Layer",
    "Shape",
    "Sparsity %",
    "Dense, kB",
    "Compressed, kB",
    "Multiply-adds, M/s",
    "Non-zero, M/s",
)


def layer_table(name: str, weights: Weights) -> str:
    """Sparsity, stored sizes and multiply-adds of the layers of the system ``name``."""
    rows = [_layers(*group) for group in grouped(weights.layers).items()]
    layers = weights.layers
    rest = (
        weights.bytes - sum(layer.bytes for layer in layers),
        weights.compressed_bytes - sum(layer.compressed_bytes for layer in layers),
    )
    rows.append(_row("other tensors", "", None, rest, weights.other))
    if weights.products is not None:
        rows.append(_row("products of activations", cost=weights.products))
    sizes = (weights.bytes, weights.compressed_bytes)
    rows.append(_row("total", "", weights.sparsity, sizes, weights.total))
    columns = {title: list(column) for title, column in zip(_TITLES, zip(*rows))}
    cells = {title: column for title, column in columns.items() if any(column)}
    lines = [f"## Layers of {name}", "", *table(cells), "", *_notes(weights)]
    return "\n".join(lines) + "\n"


def grouped(layers: list[Layer], most: int = MOST_ROWS) -> dict[str, list[Layer]]:
    """Layers by name; if more than ``most``, by the longest prefix that is sufficient.

    Names are cut at dots: encoder.encoders.3.* holds all layers of a block.
    """
    groups = {layer.name: [layer] for layer in layers}
    length = max((layer.name.count(".") for layer in layers), default=0)
    while len(groups) > most and length > 0:
        groups = {}
        for layer in layers:
            parts = layer.name.split(".")
            cut = parts if len(parts) <= length else [*parts[:length], "*"]
            groups.setdefault(".".join(cut), []).append(layer)
        length -= 1
    return groups


def _layers(title: str, layers: list[Layer]) -> list[str]:
    values = sum(layer.values for layer in layers)
    return _row(
        title,
        (
            " x ".join(map(str, layers[0].shape))
            if len(layers) == 1
            else f"{len(layers)} layers"
        ),
        sum(layer.zeros for layer in layers) / values,
        (
            sum(layer.bytes for layer in layers),
            sum(layer.compressed_bytes for layer in layers),
        ),
        total_of(layer.multiply_adds for layer in layers),
    )


def _row(
    title: str,
    shape: str = "",
    sparsity: float | None = None,
    sizes: tuple[int, int] | None = None,
    cost: MultiplyAdds | None = None,
) -> list[str]:
    return [
        title,
        shape,
        "" if sparsity is None else f"{100 * sparsity:.1f}",
        *(("", "") if sizes is None else (f"{size / 1e3:.1f}" for size in sizes)),
        *(("", "") if cost is None else (_mega(cost.dense), _mega(cost.nonzero))),
    ]


def _notes(weights: Weights) -> list[str]:
    notes = ["* The sparsity of the total is that of the layers above."]
    if weights.encoder is not None:
        encoder, decoder = (
            f"{_mega(cost.dense)} M/s, {_mega(cost.nonzero)} of them non-zero"
            for cost in (weights.encoder, weights.decoder)
        )
        notes.append(f"* Encoder: {encoder}. After it: {decoder}.")
        notes.append("* A layer with 0 M/s is not used in greedy decoding.")
    return notes


def _mega(value: float) -> str:
    return f"{value / 1e6:.2f}" if value else "0"
