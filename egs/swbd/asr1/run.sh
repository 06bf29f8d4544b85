#!/usr/bin/env bash
# Switchboard 300 h, tested on Hub5 2000: word pieces, a Conformer teacher of 44 M parameters
# and a student of a sixth of that, both with CTC and attention. Set SWBD, SWBD_TRANSCRIPTS,
# EVAL2000 and EVAL2000_TRANSCRIPTS in db.sh. Options go to kd.sh (--help lists them), e.g.
# --kd_config conf/kd/sequence.yaml. The third paper's ensemble: run_yang2019.sh.
#
# Audio stays at 8 kHz, as on the telephone: there is no signal above 4 kHz, and the files are
# half as large as at 16 kHz, which ESPnet's own recipe uses for the sake of the other
# recipes' front ends. A front end that was pre-trained at 16 kHz needs --fs 16k.
set -euo pipefail

exec ./kd.sh \
    --python "${PYTHON:-python3}" --fs 8k --lang en --use_lm false \
    --train_set train_nodup --valid_set train_dev --test_sets eval2000 \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --token_type bpe --bpemode unigram --nbpe 2000 --nlsyms_txt data/nlsyms.txt \
    --asr_config conf/train_student.yaml --teacher_asr_config conf/train_teacher.yaml \
    --inference_config conf/decode.yaml --teacher_inference_config conf/decode.yaml \
    --kd_config conf/kd/essence.yaml "$@"
