#!/usr/bin/env bash
# Wall Street Journal: characters, a Transformer teacher of 27 M parameters and a student of
# a tenth of that. Set WSJ0 and WSJ1 in db.sh. Options go to kd.sh (--help lists them), e.g.
# --kd_config conf/kd/essence.yaml. The first paper's models: run_munim2018.sh.
set -euo pipefail

exec ./kd.sh \
    --python "${PYTHON:-python3}" --lang en --use_lm false \
    --train_set train_si284 --valid_set test_dev93 --test_sets "test_dev93 test_eval92" \
    --token_type char --nlsyms_txt data/nlsyms.txt \
    --asr_config conf/train_student.yaml --teacher_asr_config conf/train_teacher.yaml \
    --inference_config conf/decode.yaml --teacher_inference_config conf/decode.yaml \
    --kd_config conf/kd/sequence.yaml "$@"
