#!/usr/bin/env bash
# Make data/{train_si284,test_dev93,test_eval92} and data/nlsyms.txt from WSJ0 and WSJ1. Run
# in the recipe folder after `. ./path.sh`; every option goes to espnet_kd.bin.prepare_wsj
# (its --help lists them). Does nothing when done.
set -euo pipefail

python=${python:-python3}

. ./db.sh

for corpus in WSJ0 WSJ1; do
    if [ ! -e data/.done ] && [ ! -d "${!corpus}" ]; then
        echo "$0: ${corpus}='${!corpus}': folder not found. Set it in db.sh, or run" \
            "WSJ0=/path/to/it WSJ1=/path/to/it ./run.sh" >&2
        exit 1
    fi
done

# ${python} may be several words ("python3 -m espnet_kd.shim").
${python} -m espnet_kd.bin.prepare_wsj --wsj0_dir "${WSJ0}" --wsj1_dir "${WSJ1}" --output_dir data "$@"
