#!/usr/bin/env bash
# The demo: speech is synthesised, a teacher is trained, labels untranscribed
# audio, and a student a tenth of its size is distilled from it. Minutes on two
# cores, no download. Options go to kd.sh (--help lists them).
set -euo pipefail

size=${DEMO_SIZE:-full} # small: a few minutes, only to show that every stage runs.
data_opts= args=
if [ "${size}" = small ]; then
    data_opts="--num_train_teacher 80 --num_train_labelled 40 --num_train_unlabelled 40 --num_valid 16 --num_test 24"
    args="--max_epoch 1 --num_iters_per_epoch 8"
fi

exec ./kd.sh \
    --python "${PYTHON:-python3}" --ngpu 0 --nj 2 --inference_nj 2 --fs 8k --use_lm false \
    --train_set train_labelled --unlabelled_set train_unlabelled \
    --teacher_train_set train_teacher --valid_set valid --test_sets test \
    --local_data_opts "${data_opts}" --token_type bpe --bpemode bpe --nbpe 40 \
    --asr_task asr_transducer --asr_config conf/train_student.yaml --asr_args "${args}" \
    --teacher_asr_config conf/train_teacher.yaml --teacher_asr_args "${args}" \
    --inference_config conf/decode.yaml \
    --teacher_model valid.loss.ave.pth --inference_asr_model valid.loss.ave.pth --kd_config conf/kd/one_best_path.yaml "$@"
