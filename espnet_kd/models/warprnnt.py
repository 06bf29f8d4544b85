"""A stand-in for `warprnnt_pytorch`, which is not on any package index.

Stock ESPnet imports `warprnnt_pytorch.RNNTLoss` to build any transducer of its `asr`
task (training and inference) and to train `asr_transducer` with the full loss. If the
real package is missing, `install` puts this module in its place.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec

import torch

from espnet_kd.lattice import transducer_loss

NAME = "warprnnt_pytorch"


class RNNTLoss(torch.nn.Module):
    """Transducer loss with the interface that ESPnet uses.

    Args:
        blank: index of blank.
        fastemit_lambda: must be 0; FastEmit changes the gradient and is only available
            in the real package.
        reduction: "mean" (sum over utterances / B), "sum" or "none".

    Raises:
        ValueError: FastEmit is requested.
    """

    def __init__(
        self, blank: int = 0, fastemit_lambda: float = 0.0, reduction: str = "mean"
    ) -> None:
        super().__init__()
        if fastemit_lambda:
            raise ValueError(
                f"fastemit_lambda={fastemit_lambda}: FastEmit needs the real "
                f"{NAME}, which is not installed; set fastemit_lambda to 0"
            )
        self.blank = blank
        self.reduction = reduction

    def forward(
        self,
        acts: torch.Tensor,
        labels: torch.Tensor,
        act_lens: torch.Tensor,
        label_lens: torch.Tensor,
    ) -> torch.Tensor:
        """-log P(labels) of raw logits acts (B, T, U+1, V); labels (B, U)."""
        return transducer_loss(
            acts,
            labels,
            act_lens,
            label_lens,
            blank=self.blank,
            reduction=self.reduction,
        )


def installed() -> str:
    """ "real", "stand-in" or "absent": the result of `import warprnnt_pytorch`."""
    module = sys.modules.get(NAME)
    if module is not None:
        return "stand-in" if getattr(module, "RNNTLoss", None) is RNNTLoss else "real"
    return "real" if importlib.util.find_spec(NAME) else "absent"


def install() -> None:
    """Make `import warprnnt_pytorch` work if the real package is missing."""
    if installed() == "absent":
        module = types.ModuleType(NAME, __doc__)
        module.__spec__ = ModuleSpec(NAME, None)  # importlib.util.find_spec reads it
        module.RNNTLoss = RNNTLoss
        sys.modules[NAME] = module
