#!/usr/bin/env bash
# Make data/{train_teacher,train_labelled,train_unlabelled,train_full,valid,test} from the
# Free Spoken Digit Dataset. Run in the recipe folder after `. ./path.sh`; every option
# goes to espnet_kd.bin.prepare_fsdd (its --help lists them). Does nothing when done.
set -euo pipefail

repository=https://github.com/Jakobovski/free-spoken-digit-dataset
python=${python:-python3}

. ./db.sh

default=downloads/free-spoken-digit-dataset
if [ ! -e data/.done ] && [ ! -d "${FSDD}/recordings" ] && [ "${FSDD}" = "${default}" ]; then
    echo "$0: ${FSDD}/recordings not found, cloning ${repository}"
    rm -rf "${FSDD}.tmp"
    mkdir -p downloads
    if GIT_TERMINAL_PROMPT=0 git clone --quiet --depth 1 "${repository}" "${FSDD}.tmp"; then
        rm -rf "${FSDD}"
        mv "${FSDD}.tmp" "${FSDD}"
    else
        echo "$0: the clone failed (no network?). Name the folder of a" \
            "copy: FSDD=/path/to/it ./run.sh, or in db.sh" >&2
        exit 1
    fi
fi

# ${python} may be several words ("python3 -m espnet_kd.shim").
${python} -m espnet_kd.bin.prepare_fsdd --fsdd_dir "${FSDD}" --output_dir data "$@"
