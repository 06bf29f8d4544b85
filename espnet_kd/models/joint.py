"""ESPnet's joint network, without materialising the logits of whole lattices."""

from __future__ import annotations

import torch
from espnet2.asr_transducer.joint_network import JointNetwork
from espnet2.asr_transducer.utils import get_transducer_task_io
from torch import Tensor

from espnet_kd.lattice import FactoredLogits
from espnet_kd.lattice.logits import Logits


def joint_logits(
    model: torch.nn.Module, encoder_out: Tensor, labels: Tensor, label_lengths: Tensor
) -> FactoredLogits:
    """Joint network output (B, T, U+1, V) for labels (B, U), not materialised."""
    steps = torch.arange(labels.size(1), device=labels.device)
    padding = steps >= label_lengths.unsqueeze(1)
    decoder_in, *_ = get_transducer_task_io(
        labels.long().masked_fill(padding, model.ignore_id),
        label_lengths,
        ignore_id=model.ignore_id,
        blank_id=getattr(model, "blank_id", 0),
    )
    model.decoder.set_device(encoder_out.device)
    return factored_joint(model.joint_network, encoder_out, model.decoder(decoder_in))


def factored_joint(
    joint: JointNetwork, encoder_out: Tensor, decoder_out: Tensor
) -> FactoredLogits:
    """The output of ESPnet's joint network for (B, T, D) and (B, U+1, D)."""
    return FactoredLogits(
        joint.lin_enc(encoder_out),
        joint.lin_dec(decoder_out),
        joint.lin_out.weight,
        joint.lin_out.bias,
        joint.joint_activation,
    )


class LeanJointNetwork(JointNetwork):
    """ESPnet's joint network, which does not materialise the logits of whole lattices.

    An instance of the stock class is converted by its `__class__`. Calls of decoding,
    and bands, are computed as in stock ESPnet.
    """

    def forward(
        self, enc_out: Tensor, dec_out: Tensor, no_projection: bool = False
    ) -> Logits:
        is_lattice = enc_out.dim() == 4 and enc_out.size(2) == dec_out.size(1) == 1
        if no_projection or not is_lattice:
            return super().forward(enc_out, dec_out, no_projection)
        return factored_joint(self, enc_out.squeeze(2), dec_out.squeeze(1))
