"""ESPnet's trainer and optimisers, with what a student needs of them."""

from __future__ import annotations

import logging
from typing import Any

import espnet2.train.trainer
import torch
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer


class KDOptimizer:
    """Mixed in before the class of a student's optimiser, by `follow`.

    Counts the updates that the schedules of `kd_conf` go by, prunes, and keeps the
    count, the projections of hidden-layer KD and what is pruned in its own state: no
    other part of checkpoint.pth can hold them, since the model's state is what stock
    ESPnet loads.
    """

    student: torch.nn.Module

    def step(self, *args, **kwargs) -> Any:
        result = super().step(*args, **kwargs)
        # Where GradScaler leaves it to the optimiser to skip a step, as to a fused one.
        overflow = getattr(self, "found_inf", None)
        if overflow is not None and overflow.item():
            return result
        self.student.updates += 1
        if self.student.pruner is not None:
            self.student.pruner.after_update(self.student.updates, self)
        return result

    step.hooked = True  # torch need not wrap it for profiling; it has wrapped the inner

    def state_dict(self) -> dict[str, Any]:
        projections = [each.detach().clone() for each in _projections(self.student)]
        kd = dict(updates=self.student.updates, projections=projections)
        if self.student.pruner is not None:
            kd["pruning"] = self.student.pruner.state_dict()
        return {**super().state_dict(), "kd": kd}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "kd" not in state_dict:
            logging.warning(
                "The checkpoint has no count of updates (an older version wrote it); "
                "schedules of kd_conf start from the beginning"
            )
            return
        self.student.updates = state_dict["kd"]["updates"]
        saved = state_dict["kd"]["projections"]
        with torch.no_grad():
            for parameter, value in zip(_projections(self.student), saved):
                parameter.copy_(value)
        if self.student.pruner is not None and "pruning" in state_dict["kd"]:
            self.student.pruner.load_state_dict(state_dict["kd"]["pruning"])


def _projections(student: torch.nn.Module) -> list[torch.nn.Parameter]:
    projections = getattr(student, "kd_projections", None)
    return [] if projections is None else list(projections.parameters())


def follow(student: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make an optimiser count the updates of a student."""
    stock = type(optimizer)
    optimizer.__class__ = type(stock.__name__, (KDOptimizer, stock), {})
    optimizer.student = student


class SparseReporter(Reporter):
    """Ranks only the epochs in which a student was as sparse as it has become.

    A student that is being pruned is best while it is dense. What ESPnet keeps as its
    best, averages and waits for (`patience`) must have the same weights pruned.
    """

    def sort_epochs_and_values(
        self, key: str, key2: str, mode: str
    ) -> list[tuple[int, float]]:
        ranked = super().sort_epochs_and_values(key, key2, mode)
        left = {e: self.stats[e].get(key, {}).get("pruning_left", 1) for e, _ in ranked}
        least = min(left.values())
        return [(epoch, value) for epoch, value in ranked if left[epoch] == least]


class KDTrainer(Trainer):
    """Keeps the best epochs of a sparse student, and resumes a k2 pruned transducer
    where it stopped.

    `asr_transducer` warms its pruned loss up by a count of forward passes that no
    checkpoint holds; the count is read back from the epochs that the reporter saw.
    """

    @classmethod
    def run(cls, model: torch.nn.Module, **kwargs) -> None:
        # Trainer.run makes its own reporter, of the class that has this name.
        espnet2.train.trainer.Reporter = SparseReporter
        try:
            super().run(model=model, **kwargs)
        finally:
            espnet2.train.trainer.Reporter = Reporter
        _warn_of_unfinished_pruning(model)

    @staticmethod
    def resume(checkpoint, model, reporter: Reporter, *args, **kwargs) -> None:
        Trainer.resume(checkpoint, model, reporter, *args, **kwargs)
        if hasattr(model, "steps_num"):
            model.steps_num = forward_passes(reporter) - 1

    @classmethod
    def plot_attention(cls, model, *args, **kwargs) -> None:
        steps = getattr(model, "steps_num", None)
        super().plot_attention(model, *args, **kwargs)
        if steps is not None:  # passes for plots are not training
            model.steps_num = steps


def forward_passes(reporter: Reporter) -> int:
    """Batches seen in training and validation up to the reporter's last epoch."""
    return sum(
        reporter.stats[reporter.get_epoch()][key]["total_count"]
        for key in ("train", "valid")
        if key in reporter.stats.get(reporter.get_epoch(), {})
    )


def _warn_of_unfinished_pruning(model: torch.nn.Module) -> None:
    pruner = getattr(model, "pruner", None)
    if pruner is not None and pruner.conf.left(model.updates) > 0:
        logging.warning(
            f"kd_conf.pruning.end: training ended after {model.updates} updates, "
            f"before update {pruner.conf.end}: the student is {pruner.sparsity:.1%} "
            f"sparse, not {pruner.conf.sparsity:.1%}. In a new folder, raise "
            "max_epoch or lower end"
        )
