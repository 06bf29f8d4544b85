#!/usr/bin/env bash
# ESPnet 202412, 202511 and 202611: the second `asr_transducer` encoder that a process
# builds without `input_conf` gets the sizes of the first one. `Encoder.__init__` has
# `input_conf: Dict = {}`, one object for the process, and the validation of blocks stores
# the size of the first block in it. A wide first model (such as a KD teacher) makes a narrow
# second one fail in its first forward pass, or count more parameters than it has alone.
#
# Seen: parameters of an encoder of width 16: 8400 alone, 17792 when built after one of
# width 32 (the same in 202412).
#
# Installs the packages (some GB) in a temporary folder; FINDINGS_PYTHON=<python> uses an
# environment that has them. Exits 1 if the behaviour differs.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "${folder}"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "${python}" ]; then
    python3.12 -m venv "${folder}/venv"
    python=${folder}/venv/bin/python
    "${python}" -m pip install -q espnet==202611 torch==2.13.0 torchaudio==2.11.1
fi
cd "${folder}"
"${python}" - <<'PYTHON' 
from importlib.metadata import version

from espnet2.asr_transducer.encoder.encoder import Encoder

assert version("espnet") in ("202412", "202511", "202611"), version("espnet")


def parameters(width, **options):
    block = dict(block_type="conformer", hidden_size=width, linear_size=width, heads=2,
                 conv_mod_kernel_size=5)
    encoder = Encoder(40, [block], **options)
    return sum(p.numel() for p in encoder.parameters())


alone = parameters(16, input_conf={})
parameters(32)
second = parameters(16)
print(f"width 16: {alone} parameters alone, {second} after an encoder of width 32")
assert (alone, second) == (8400, 17792)
PYTHON
echo "as described"
