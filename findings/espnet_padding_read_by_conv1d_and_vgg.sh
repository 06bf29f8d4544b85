#!/usr/bin/env bash
# ESPnet 202611: an utterance in a padded batch is still encoded differently than alone
# where a conformer has feed-forward layers of convolutions (positionwise_layer_type:
# conv1d) and where the input of asr_transducer is VGG-like (vgg_like: true). 202610 and
# 202611 keep padding out of subsampling, conformer and branchformer convolutions, and
# the lengths are right; these two still read the frames after an utterance's end.
#
# Seen (largest difference between an utterance in a batch, its padding filled with 9.0,
# and alone): conformer with linear feed-forward 0.0000, with conv1d feed-forward 0.3847;
# asr_transducer with a convolutional input 0.0000, with a VGG-like one 0.0685.
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
"${python}" - <<'PYTHON' 2>/dev/null
from importlib.metadata import version

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr_transducer.encoder.encoder import Encoder

assert version("espnet") == "202611", version("espnet")


def difference(encoder, lengths=(80, 77, 60, 41)):
    encoder.eval()
    lengths = torch.tensor(lengths)
    torch.manual_seed(0)
    x = torch.randn(len(lengths), int(lengths.max()), 16)
    for n, length in enumerate(lengths):
        x[n, length:] = 9.0
    with torch.no_grad():
        batch, frames = encoder(x, lengths)[:2]
        worst = 0.0
        for n, length in enumerate(lengths):
            alone, own = encoder(x[n : n + 1, :length], lengths[n : n + 1])[:2]
            assert int(own) == int(frames[n])
            worst = max(worst, float((batch[n, : int(own)] - alone[0]).abs().max()))
    return worst


def conformer(kind):
    torch.manual_seed(0)
    return ConformerEncoder(
        16, output_size=12, attention_heads=2, num_blocks=2, linear_units=12,
        macaron_style=True, rel_pos_type="latest", positionwise_layer_type=kind,
    )


def transducer(vgg):
    torch.manual_seed(0)
    block = dict(block_type="conformer", hidden_size=12, linear_size=12, heads=2,
                 conv_mod_kernel_size=5)
    conv = dict(vgg_like=vgg, conv_size=(4, 6) if vgg else 6, subsampling_factor=4)
    return Encoder(16, [block], input_conf=conv)


seen = {
    "conformer, linear feed-forward": (difference(conformer("linear")), False),
    "conformer, conv1d feed-forward": (difference(conformer("conv1d")), True),
    "asr_transducer, convolutional input": (difference(transducer(False)), False),
    "asr_transducer, VGG-like input": (difference(transducer(True)), True),
}
for name, (value, leaks) in seen.items():
    print(f"{name}: {value:.4f}")
assert all((value > 0.05) == leaks for value, leaks in seen.values())
assert all(value < 1e-4 for value, leaks in seen.values() if not leaks)
PYTHON
echo "as described"
