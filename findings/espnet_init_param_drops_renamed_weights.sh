#!/usr/bin/env bash
# ESPnet 202611, found 2026-11-28: `--init_param model.pth` with a model that ESPnet 202511
# or older trained leaves the last layer of conv1d and conv2d subsampling at random,
# without a warning.
#
# Installs the packages (some GB) in a temporary folder; FINDINGS_PYTHON=<python> uses an
# environment that has them. Exits 1 if the behaviour differs.
#
# 202609 renamed `encoder.embed.out.0.*` to `encoder.embed.out.*`, and a hook renames the
# weights of older files while they are loaded. `load_pretrained_model` puts the file's weights
# into the model's own state_dict and loads that: it has both names, and the hook
# drops the old one, which is the file's. ESPnet 202412 and 202511 refuse a file with
# the new names ("Unexpected key(s)").
#
# Output of 2026-11-28, Python 3.12, torch 2.13.0:
#   ESPnet 202611
#   weights of the file that were taken: all but 2
#   encoder.embed.out.weight: random
#   encoder.embed.out.bias: random
#   the same file by build_model_from_file: all were taken
#
# Trainings of espnet_kd load such files completely (espnet_kd/models/loading.py).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "${folder}"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "${python}" ]; then
    python3.12 -m venv "${folder}/venv"
    python=${folder}/venv/bin/python
    "${python}" -m pip install -q "espnet[asr]==202611" torch==2.13.0 torchaudio==2.11.1
fi
cd "${folder}"
"${python}" - 2> log <<'PY' || { cat log >&2; exit 1; }
import argparse
from importlib.metadata import version

import torch
import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

options = ASRTask.get_default_config()
options.update(
    token_list=["<blank>", "<unk>", "a", "<sos/eos>"],
    encoder="transformer",  # its input_layer is conv2d
    encoder_conf=dict(output_size=8, attention_heads=2, linear_units=8, num_blocks=1),
    model_conf=dict(ctc_weight=1.0, report_cer=False, report_wer=False),
    frontend_conf=dict(n_mels=16),
    specaug=None,
)
trained, student = (
    ASRTask.build_model(argparse.Namespace(**options)) for _ in range(2)
)
with open("config.yaml", "w") as config:
    yaml.safe_dump(options, config)
with torch.no_grad():
    for parameter in trained.parameters():
        parameter.add_(1.0)
weights = trained.state_dict()
old = {
    name.replace("embed.out.", "embed.out.0."): value for name, value in weights.items()
}
torch.save(old, "202511.pth")  # as 202511 and older write it


def not_taken(model):
    found = model.state_dict()
    return [name for name in weights if not torch.equal(found[name], weights[name])]


load_pretrained_model("202511.pth", student, ignore_init_mismatch=False)
random = not_taken(student)
print("ESPnet", version("espnet"))
print("weights of the file that were taken: all but", len(random))
for name in random:
    print(f"{name}: random")
read, _ = ASRTask.build_model_from_file("config.yaml", "202511.pth", "cpu")
print("the same file by build_model_from_file:", not_taken(read) or "all were taken")
expected = ["encoder.embed.out.weight", "encoder.embed.out.bias"]
if random != expected or not_taken(read):
    raise SystemExit("this has changed")
PY
echo "as described"
