#!/usr/bin/env bash
# Connected digits from the Free Spoken Digit Dataset: a teacher of 1.2 M parameters,
# students of 0.12 M that see references for a fifth of their audio. Options go to kd.sh
# (--help lists them), e.g. --kd_config conf/kd/sequence.yaml.
set -euo pipefail

exec ./kd.sh \
    --python "${PYTHON:-python3}" --ngpu 0 --nj 2 --inference_nj 2 --fs 8k --use_lm false \
    --train_set train_labelled --unlabelled_set train_unlabelled \
    --teacher_train_set train_teacher --valid_set valid --test_sets test \
    --token_type bpe --bpemode bpe --nbpe 30 \
    --asr_task asr_transducer --asr_config conf/train_student.yaml \
    --teacher_asr_config conf/train_teacher.yaml --inference_config conf/decode.yaml \
    --teacher_model valid.loss.ave.pth --inference_asr_model valid.loss.ave.pth \
    --teacher_inference_config conf/decode_nbest.yaml --kd_config conf/kd/one_best_path.yaml "$@"
