"""ESPnet's trainer, with what it forgets when it resumes."""

from __future__ import annotations

from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer


class KDTrainer(Trainer):
    """Resumes a k2 pruned transducer where it stopped.

    `asr_transducer` warms its pruned loss up by a count of forward passes that no
    checkpoint holds; the count is read back from the epochs that the reporter saw.
    """

    @staticmethod
    def resume(checkpoint, model, reporter: Reporter, *args, **kwargs) -> None:
        Trainer.resume(checkpoint, model, reporter, *args, **kwargs)
        if hasattr(model, "steps_num"):
            model.steps_num = forward_passes(reporter) - 1

    @classmethod
    def plot_attention(cls, model, *args, **kwargs) -> None:
        steps = getattr(model, "steps_num", None)
        super().plot_attention(model, *args, **kwargs)
        if steps is not None:  # passes for the plots are none of training
            model.steps_num = steps


def forward_passes(reporter: Reporter) -> int:
    """Batches seen in training and validation up to the reporter's last epoch."""
    return sum(
        reporter.stats[reporter.get_epoch()][key]["total_count"]
        for key in ("train", "valid")
        if key in reporter.stats.get(reporter.get_epoch(), {})
    )
