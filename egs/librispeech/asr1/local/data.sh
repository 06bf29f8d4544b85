#!/usr/bin/env bash
# Make data/{train_clean_100,train_unlabelled_860,train_960,dev,dev_clean,dev_other,
# test_clean,test_other} from LibriSpeech. Run in the recipe folder after `. ./path.sh`;
# every option goes to espnet_kd.bin.prepare_librispeech (its --help lists them). Does
# nothing when done, downloads nothing.
set -euo pipefail

python=${python:-python3}

. ./db.sh

# ${python} may be several words ("python3 -m espnet_kd.shim").
${python} -m espnet_kd.bin.prepare_librispeech --corpus_dir "${LIBRISPEECH}" --output_dir data "$@"

# Text for a language model, under the name that asr.sh's recipes have for it.
lm_text=data/local/other_text/text
if [ -n "${LIBRISPEECH_LM_TEXT}" ] && [ ! -e "${lm_text}" ]; then
    mkdir -p "${lm_text%/*}"
    gzip -cd "${LIBRISPEECH_LM_TEXT}" | awk 'NF { printf "lm-%08d %s\n", NR, $0 }' >"${lm_text}.tmp"
    mv "${lm_text}.tmp" "${lm_text}"
fi
