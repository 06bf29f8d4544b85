"""Decoding time of ESPnet's searches, one utterance at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espnet_kd.planning.machines import Machine
from espnet_kd.planning.model_costs import Model, Speech
from espnet_kd.planning.training import Figure

# Measured on one core, docs/planning.md: share of the peak rate, and seconds of Python
# and small operations besides matrix products.
UTILISATION = 0.5
TOKEN_SECONDS = 15e-3  # of a token in an attention decoder's search
NODE_SECONDS = 0.7e-3  # of a hypothesis at a node of a transducer's

ESPNET_BEAM = 20  # default of asr_inference


@dataclass(frozen=True)
class Search:
    """Fields of a decoding YAML of ESPnet."""

    beam_size: int = ESPNET_BEAM


def search_of(config: Mapping[str, Any]) -> Search:
    """The `Search` of a parsed decoding YAML."""
    return Search(int(config.get("beam_size", ESPNET_BEAM)))


def decoding_time(
    model: Model, speech: Speech, audio: float, search: Search, machine: Machine
) -> Figure:
    """Seconds of one job, on a core of a CPU or on a GPU, for some seconds of audio.

    ESPnet's attention decoders process the whole encoder output again for each token of
    each hypothesis.
    """
    beam = search.beam_size
    if model.joint:
        behind = beam * model.decoder
        steps, each = beam * (model.frame_rate + speech.labels), NODE_SECONDS
        formula = "hypotheses at nodes"
    elif model.step:
        behind = beam * speech.labels * model.step
        steps, each, formula = speech.labels, TOKEN_SECONDS, "tokens"
    else:
        behind, steps, each, formula = model.decoder, 0.0, 0.0, "steps"
    flop = 2 * (model.encoder + behind)
    factor = flop / (machine.fp32 * UTILISATION) + steps * each
    return Figure(
        audio * factor,
        f"{audio / 3600:.4g} h x {factor:.3g}: FLOP 2 x ({model.encoder:.3g} of the "
        f"encoder + {behind:.3g} after it, beam {beam}) / ({machine.fp32:.3g} x "
        f"{UTILISATION:g}) + {steps:.3g} {formula} x {each:g} s",
    )
