#!/usr/bin/env bash
# Make data/{train_teacher,train_labelled,train_unlabelled,train_full,valid,test} from
# synthetic speech; no network. Run in the recipe folder after `. ./path.sh`; every option
# goes to espnet_kd.bin.prepare_mini (its --help lists them). Does nothing when done.
set -euo pipefail

python=${python:-python3}

# ${python} may be several words ("python3 -m espnet_kd.shim").
${python} -m espnet_kd.bin.prepare_mini --output_dir data "$@"
