"""Stacks of layers in a model, found by the names of its weights."""

from __future__ import annotations

import re
from typing import NamedTuple, Sequence

from torch import nn

from espnet_kd.models.espnet_versions import legacy

MultiSequential = legacy("nets.pytorch_backend.transformer.repeat").MultiSequential


class Stack(NamedTuple):
    """Consecutive layers; `pattern` finds a layer's number in a name."""

    path: str
    depth: int
    pattern: re.Pattern

    def number(self, name: str) -> int | None:
        """The layer of a tensor or module, None if it is not in one."""
        match = self.pattern.match(name)
        return int(match[2]) if match else None

    def renamed(self, name: str, taken: Sequence[int]) -> str:
        """The name in the teacher, if student layer i is teacher layer taken[i]."""
        return self.pattern.sub(lambda match: f"{match[1]}{taken[int(match[2])]}", name)


def stacks_in(path: str, module: nn.Module) -> list[Stack]:
    """Outermost stacks of layers at and below a module named `path`."""
    start = re.escape(path)
    children = dict(module.named_children())
    rnns = [c for c, m in children.items() if isinstance(m, nn.RNNBase)]
    if isinstance(module, nn.RNNBase):
        pattern = rf"({start}\.\w+_l)(\d+)(?=_reverse$|$)"
        return [Stack(path, module.num_layers, re.compile(pattern))]
    if isinstance(module, (nn.ModuleList, MultiSequential)):
        # In a list of whole recurrent networks (VGG, RNN), each member is a stack.
        networks = any(
            isinstance(inner, nn.RNNBase)
            for child in children.values()
            for inner in child.children()
        )
        if has_state(module) and not networks:
            pattern = rf"({start}\.)(\d+)(?![^.])"
            return [Stack(path, len(children), re.compile(pattern))]
    elif rnns and all(name[-1].isdigit() for name in rnns):
        pattern = rf"({start}\.[a-z]+)(\d+)(?![^.])"  # birnn0, bt0, birnn1 ..
        return [Stack(path, len(rnns), re.compile(pattern))]
    return [s for c, m in children.items() for s in stacks_in(f"{path}.{c}", m)]


def has_state(module: nn.Module) -> bool:
    """Whether a module has parameters or buffers that are stored."""
    return bool(module.state_dict())
