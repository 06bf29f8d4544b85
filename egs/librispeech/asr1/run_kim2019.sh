#!/usr/bin/env bash
# Kim et al.: Knowledge distillation using output errors for self-attention end-to-end models
# (ICASSP 2019). On LibriSpeech 960 h a Transformer teaches students A (a quarter of it) and
# B (half) by its best hypotheses (SEQ-KD), and by the same weighted with exp(-beta * WER) for
# beta 1, 2 and 5 (ERR-KD). RESULTS.md has the paper's numbers; conf/kim2019/*.yaml mark what
# is the paper's and what is ours.
#
#     ./run_kim2019.sh [options of kd.sh for every step; not --stop_stage, nor a --stage below
#                      12: the steps set them, and what is done is skipped]
#     STUDENTS=a BETAS="1 5" ./run_kim2019.sh      some of them
#
# Cost (an estimate of espnet_kd.bin.plan, good to a factor of two; nothing was run; GPUs like
# an A100): teacher 20 GPU hours, each of 5 students A 11, each of 5 students B 15: 150 GPU
# hours. The teacher's search over 960 h: 1360 core hours, or with --gpu_inference true 65 GPU
# hours (with run_jobs.py also --nj 4 --inference_nj 4 from the start: all jobs share one GPU).
# Disk: 15 GB beside the corpus, whose FLAC files are read as they are. Run it again after a
# kill.
set -euo pipefail

students=${STUDENTS:-a b}
betas=${BETAS:-1 2 5}
conf=conf/kim2019
teacher=exp/asr_kim2019_teacher
search=decode
options=("$@")

step() { # step STUDENT OPTION...: of run.sh
    ./run.sh --train_set train_960 --unlabelled_set "" --nbpe 1000 --asr_task asr \
        --asr_stats_dir exp/asr_stats_kim2019 \
        --teacher_asr_config "${conf}/train_teacher.yaml" --teacher_exp "${teacher}" \
        --asr_config "${conf}/train_student_$1.yaml" --asr_tag "kim2019_$1" \
        --teacher_model valid.acc.ave.pth --inference_asr_model valid.acc.ave.pth \
        --teacher_inference_config "${conf}/decode.yaml" --teacher_nbest 1 \
        --inference_config "${conf}/decode.yaml" --inference_tag "${search}" \
        "${@:2}" "${options[@]}"
}

# 1. Data, tokens, statistics, the teacher, its hypotheses of the 960 h. Always with student A:
# statistics are identified by the configuration that made them.
step a --kd_config "${conf}/seq_kd.yaml" --stop_stage 6

# 2. Students on the references and on each KD set, decoded and scored.
for student in ${students}; do
    step "${student}" --kd_config "${conf}/seq_kd.yaml" --stage 8
    for beta in ${betas}; do
        step "${student}" --kd_config "${conf}/err_kd.yaml" --kd_tag "err_kd_beta${beta}" \
            --kd_set_args "--beta ${beta}" --stage 8
    done
done

# 3. A table for each student and test set: exp/kim2019_<student>_<set>.md.
for student in ${students}; do
    plain=exp/asr_kim2019_${student}
    systems=(--system teacher "${teacher}" --system "${student}" "${plain}"
        --system SEQ-KD "${plain}_kd_seq_kd")
    for beta in ${betas}; do
        systems+=(--system "ERR-KD ${beta}" "${plain}_kd_err_kd_beta${beta}")
    done
    ${PYTHON:-python3} -m espnet_kd.bin.report "${systems[@]}" \
        --inference_tag "${search}" --inference_asr_model valid.acc.ave.pth \
        --teacher teacher --baseline "${student}" --output "exp/kim2019_${student}_{set}.md"
done
