#!/usr/bin/env bash
# LibriSpeech in the setting of X. Yang et al. (ICASSP 2022): references for 100 h, 860 h
# of audio without; Conformer transducers, a teacher of 30 M parameters and students of
# 10 M. Options go to kd.sh (--help lists them). With references for all 960 h:
#
#     ./run.sh --train_set train_960 --unlabelled_set "" --nbpe 1000
#
# (Another --nbpe keeps the word pieces of the 100 h from being overwritten.)
# run_<paper>.sh reproduce the papers.
set -euo pipefail

exec ./kd.sh \
    --python "${PYTHON:-python3}" --ngpu "${NGPU:-1}" --fs 16k --lang en --use_lm false \
    --train_set train_clean_100 --unlabelled_set train_unlabelled_860 \
    --valid_set dev --test_sets "test_clean test_other dev_clean dev_other" \
    --token_type bpe --bpemode unigram --nbpe 256 \
    --asr_task asr_transducer --asr_config conf/train_student.yaml \
    --teacher_asr_config conf/train_teacher.yaml --inference_config conf/decode.yaml \
    --teacher_model valid.loss.ave.pth --inference_asr_model valid.loss.ave.pth \
    --teacher_inference_config conf/decode_nbest.yaml \
    --kd_config conf/kd/one_best_path.yaml "$@"
