#!/usr/bin/env bash
# Make data/{train_nodup,train_dev,eval2000} and data/nlsyms.txt from Switchboard and Hub5
# 2000, and data/local/other_text/text from Fisher where FISHER is set. Run in the recipe
# folder after `. ./path.sh`; every option goes to espnet_kd.bin.prepare_switchboard (its
# --help lists them). Does nothing when done, even if db.sh no longer names a folder;
# downloads nothing.
set -euo pipefail

python=${python:-python3}

. ./db.sh

for corpus in SWBD SWBD_TRANSCRIPTS EVAL2000 EVAL2000_TRANSCRIPTS; do
    if [ ! -e data/.done ] && [ ! -d "${!corpus}" ]; then
        echo "$0: ${corpus}='${!corpus}': folder not found. Set it in db.sh, or run" \
            "SWBD=/path/to/it EVAL2000=/path/to/it ./run.sh" >&2
        exit 1
    fi
done

# ${python} may be several words ("python3 -m espnet_kd.shim"), FISHER several folders.
# shellcheck disable=SC2086
${python} -m espnet_kd.bin.prepare_switchboard --audio_dir "${SWBD}" \
    --transcripts_dir "${SWBD_TRANSCRIPTS}" --eval2000_dir "${EVAL2000}" \
    --eval2000_transcripts_dir "${EVAL2000_TRANSCRIPTS}" \
    ${FISHER:+--fisher_dir ${FISHER}} --output_dir data "$@"
