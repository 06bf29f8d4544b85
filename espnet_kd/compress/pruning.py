"""Gradual magnitude pruning (Zhu and Gupta, arXiv:1710.01878) during training.

A pruned weight is simply a zero in the model: its state_dict has no masks, so stock
ESPnet can resume, average and decode it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from espnet_kd.compress.sparsity import (
    PROJECTIONS,
    lowest,
    parse_pattern,
    prunable_weights,
)
from espnet_kd.config.pruning import PruningConf
from espnet_kd.models.espnet_versions import named_as, other_names


class Pruner:
    """Keeps the weights of a model pruned according to a `PruningConf`.

    While the schedule runs, a pruned weight's last value is remembered and restored if
    others have become smaller. Pruned weights get no gradient, so they do not count in
    the gradient's norm and the optimiser does not move them.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], conf: PruningConf) -> None:
        self.conf = conf
        self.weights = weights
        self.pattern = parse_pattern(conf.pattern)
        self.pruned: dict[str, Tensor] = {}  # True where a weight is zero
        self.remembered: dict[str, Tensor] = {}  # last values of pruned weights
        self.sparsity = 0.0
        for name, weight in weights.items():
            weight.register_hook(partial(self._without_pruned, name))

    def _without_pruned(self, name: str, gradient: Tensor) -> Tensor:
        if name not in self.pruned:
            return gradient
        return gradient.masked_fill(self.pruned[name], 0)

    @torch.no_grad()
    def after_update(self, updates: int, optimizer: torch.optim.Optimizer) -> None:
        """Prune after `updates` updates, and keep pruned weights at zero."""
        is_late = updates > self.conf.start and not self.pruned
        if self.conf.is_due(updates) or is_late:
            self.choose(updates)
        for name, pruned in self.pruned.items():
            weight = self.weights[name]
            for value in (weight, *optimizer.state.get(weight, {}).values()):
                if isinstance(value, Tensor) and value.shape == pruned.shape:
                    value.masked_fill_(pruned, 0)  # the weight, and its moments

    @torch.no_grad()
    def choose(self, updates: int) -> None:
        """Choose the masks according to the schedule after `updates` updates.

        Until the schedule ends, the last value of every pruned weight is restored, so
        that all are compared; `after_update` zeroes those in the new masks.
        """
        values = {
            name: self._restored(name, weight) for name, weight in self.weights.items()
        }
        share = self.conf.sparsity_at(updates) / self.pattern.most
        scores = {name: self.pattern.scores(value) for name, value in values.items()}
        for name, units in self._lowest(scores, share).items():
            self.pruned[name] = _as_rank_0(self.pattern.mask(values[name], units))
        for name, value in values.items():
            self.weights[name].copy_(value)
        is_over = updates >= self.conf.end
        self.remembered = {} if is_over else values
        self._count()

    def _restored(self, name: str, weight: Tensor) -> Tensor:
        if name not in self.remembered:
            return weight.detach().clone()
        return torch.where(self.pruned[name], self.remembered[name], weight)

    def _lowest(self, scores: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """The units to prune, by layer."""
        if self.conf.ranking == "layer":
            return {
                name: lowest(each, _nearest(share * len(each)))
                for name, each in scores.items()
            }
        together = torch.cat(list(scores.values()))
        units = lowest(together, _nearest(share * len(together)))
        return dict(zip(scores, units.split([len(each) for each in scores.values()])))

    def _count(self) -> None:
        pruned = sum(int(each.sum()) for each in self.pruned.values())
        self.sparsity = pruned / sum(each.numel() for each in self.pruned.values())

    def stats(self, updates: int) -> dict[str, float]:
        """For ESPnet's reporter."""
        return {"sparsity": self.sparsity, "pruning_left": self.conf.left(updates)}

    def state_dict(self) -> dict[str, Any]:
        """The state for resuming; only the values of pruned weights."""
        remembered = {
            name: value[self.pruned[name]] for name, value in self.remembered.items()
        }
        return {
            "conf": asdict(self.conf),
            "pruned": dict(self.pruned),
            "remembered": remembered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the checkpoint was pruned with other settings."""
        now, there = asdict(self.conf), state["conf"]
        pruned, remembered = (
            named_as(self.weights, state[each]) for each in ("pruned", "remembered")
        )
        differing = [
            f"{name}: {there.get(name)} there, {value} now"
            for name, value in now.items()
            if value != there.get(name)
        ]
        if pruned and set(pruned) != set(self.weights):
            differing.append("its parameters, or which of them are trained")
        if differing:
            raise ValueError(
                f"kd_conf.pruning: the checkpoint was pruned with other settings ("
                f"{'; '.join(differing)}); resume with those, or begin a new "
                "folder with --init_param"
            )
        if not pruned:
            return
        for name, weight in self.weights.items():
            self.pruned[name] = pruned[name].to(weight.device)
        for name, values in remembered.items():
            value = self.weights[name].detach().clone()
            value[self.pruned[name]] = values.to(value)
            self.remembered[name] = value
        self._count()


def make_pruner(model: nn.Module, conf: PruningConf) -> Pruner:
    """The pruner of a model's trainable parameters.

    Raises:
        ValueError: a pattern matches no parameter, or no parameter is left.
    """
    weights = _choose_parameters(model, conf)
    pattern = parse_pattern(conf.pattern)
    dense = [name for name, each in weights.items() if not pattern.takes(each.shape)]
    if dense:
        logging.warning(
            f"kd_conf.pruning.pattern: {conf.pattern} needs row lengths that are "
            f"multiples of four; these stay dense: {', '.join(dense)}"
        )
    weights = {name: each for name, each in weights.items() if name not in dense}
    if not weights:
        raise ValueError(
            f"kd_conf.pruning: no trainable parameter is left with pattern: "
            f"{conf.pattern}, parameters: {list(conf.parameters)}, exclude: "
            f"{list(conf.exclude)}"
        )
    count = sum(each.numel() for each in weights.values())
    total = sum(each.numel() for each in model.parameters())
    logging.info(
        f"Pruning to {conf.sparsity:.0%} of {len(weights)} weights with {count} of the "
        f"model's {total} parameters: {', '.join(weights)}"
    )
    return Pruner(weights, conf)


def _choose_parameters(model: nn.Module, conf: PruningConf) -> dict[str, nn.Parameter]:
    usual = prunable_weights(model)
    renamed = other_names(model)
    named = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(PROJECTIONS)
    }
    others = [name for name in named if name not in usual]
    excluded = _matching(named, conf.exclude, "exclude", renamed)
    chosen = _matching(usual, conf.parameters, "parameters", renamed)
    chosen |= _matching(others, conf.others, "others", renamed)
    return {
        name: parameter
        for name, parameter in named.items()
        if name in chosen - excluded and parameter.requires_grad
    }


def _matching(
    names: Any, patterns: tuple[str, ...], field: str, renamed: Mapping[str, str]
) -> set[str]:
    """The names that match patterns; a weight may be given by its name in any version
    of ESPnet."""
    matching = set()
    for pattern in patterns:
        found = {
            name
            for name in names
            if fnmatchcase(name, pattern) or fnmatchcase(renamed.get(name, ""), pattern)
        }
        if not found:
            raise ValueError(
                f"kd_conf.pruning.{field}: {pattern!r} matches none of the names: "
                f"{', '.join(names)}"
            )
        matching |= found
    return matching


def _nearest(count: float) -> int:
    return int(count + 0.5)


def _as_rank_0(mask: Tensor) -> Tensor:
    """The mask chosen by the first rank."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return mask
    chosen = mask.to(torch.uint8)
    torch.distributed.broadcast(chosen, src=0)
    return chosen.bool()
