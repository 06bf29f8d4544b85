#!/usr/bin/env bash
# Score eval2000 by its stm and glm, in the subsets swbd and callhm: for each decoding of an
# experiment <folder>/<decoding>/eval2000/score_wer/eval2000.md. kd.sh and asr.sh call it
# after their own scoring, with the words of --local_score_opts before the folder:
#
#     local/score.sh [options of espnet_kd.bin.score_eval2000] <folder>
#
# It needs sclite of NIST's SCTK on PATH (Debian: apt install sctk).
set -euo pipefail

python=${python:-${PYTHON:-python3}}

if [ $# -eq 0 ]; then
    echo "Usage: $0 [options] <experiment folder>" >&2
    exit 2
fi
folder=${*: -1}
set -- "${@:1:$#-1}"

found=false
for text in "${folder}"/*/eval2000/text; do
    [ -e "${text}" ] || continue
    found=true
    table=${text%/text}/score_wer/eval2000.md
    # ${python} may be several words.
    ${python} -m espnet_kd.bin.score_eval2000 --data_dir data/eval2000 \
        --hyp "$(basename "${folder}")" "${text}" --output "${table}" "$@" >/dev/null
    echo "${table}"
done
if [ "${found}" = false ]; then
    echo "$0: ${folder} no decoding of eval2000 found, nothing is scored by the stm"
fi
