#!/usr/bin/env bash
# Mun'im, Inoue, Shinoda: Sequence-level knowledge distillation for model compression of
# attention-based sequence-to-sequence speech recognition (arXiv 1811.04531, ICASSP 2019).
# An attention model on WSJ teaches two smaller ones: their references are replaced by the
# teacher's hypotheses. The paper's text was not available:
# conf/munim2018/*.yaml mark what is known of it and what is our choice.
#
# Cost (an estimate by espnet_kd.bin.plan, nothing was run): 11 GPU hours on one V100 at half
# of its peak rate (teacher 4, six students about 1 each), 50 core hours for the teacher's
# search over 81 h of speech, 11 GB of disk. Recurrent layers seldom run at that rate: at 1 s
# per update the 7 trainings of 25 x 850 updates take 42 hours.
#
# Options go to every call of run.sh, e.g. --asr_args "--max_epoch 1"; not --stop_stage, nor a
# --stage below 12: the steps set them, and what is done is skipped. NBESTS: the numbers of
# hypotheses, at most 10 (the beam); STUDENTS: hidden units of the students.
set -euo pipefail

nbests=${NBESTS:-1 5}
students=${STUDENTS:-256 160}
conf=conf/munim2018

las() { # las STUDENT OPTION...
    ./run.sh --asr_config "${conf}/las_student_$1.yaml" --asr_stats_dir exp/asr_stats_munim2018 \
        --teacher_asr_config "${conf}/las_teacher.yaml" --teacher_nbest 10 \
        --inference_config "${conf}/decode.yaml" --teacher_inference_config "${conf}/decode.yaml" \
        --kd_config "${conf}/hypotheses.yaml" "${@:2}"
}

# 1. Data, tokens, statistics, teacher, its hypotheses of the training set. The same student
# whatever STUDENTS is: statistics are identified by the configuration that made them.
las 160 --stop_stage 6 "$@"

# 2. A KD set for each number of hypotheses; students; decoding, scoring, report.
for nbest in ${nbests}; do
    for student in ${students}; do
        las "${student}" --stage 8 --kd_tag "nbest${nbest}" "$@" --kd_set_args "--nbest ${nbest}"
    done
done
