#!/usr/bin/env bash
# Z. Yang, C. Zhang, W. Zhang, Jin, Chen: Essence knowledge distillation for speech recognition
# (arXiv 1906.10834, Interspeech 2019), on Switchboard: an ensemble of different models teaches
# a student the largest of its mean posteriors, beside the hard labels. Compared are the
# teachers, the student alone, with the top 20 outputs (essence) and with all of them (full).
# conf/yang2019/*.yaml mark what is the paper's and what is ours; RESULTS.md has the paper's
# numbers.
#
#     ./run_yang2019.sh [options of kd.sh for every step]
#     TEACHERS="conformer blstm" WEIGHTS="2 1" KDS=essence ./run_yang2019.sh
#
# Not --stage below 12 nor --stop_stage: the steps set them (what is done is skipped);
# --stage 12 decodes and scores again. Python: PYTHON=..., not --python. The names of another
# ensemble's students and table contain its teachers and weights.
#
# Cost (an estimate of espnet_kd.bin.plan, good to a factor of two; nothing was run; 300 h at
# three speeds, one GPU like an A100): teachers 50, 25 and 10 GPU hours (the BLSTM's steps wait
# for one another: rather 20), the student 17, with KD twice 49: 200 GPU hours. Disk: 15 GB of
# mu-law calls, 50 GB of utterances, 10 GB of models. Run it again after a kill.
set -euo pipefail

all="conformer transformer blstm"
teachers=${TEACHERS:-${all}}
weights=${WEIGHTS:-} # one for each teacher; equal if empty
kds=${KDS:-essence full}
python=${PYTHON:-python3}
conf=conf/yang2019
search=decode
options=("$@")

folder() { echo "exp/asr_yang2019_$1"; }
step() { # step OPTION...: of run.sh
    ./run.sh --asr_config "${conf}/train_student.yaml" --asr_tag yang2019_student \
        --asr_stats_dir exp/asr_stats_yang2019 --inference_tag "${search}" "$@" "${options[@]}"
}
ensemble=
for name in ${teachers}; do ensemble+="$(folder "${name}") "; done
tag=${teachers}${weights:+ ${weights}}
if [ "${tag}" = "${all}" ]; then tag=; else tag=_${tag// /_}; fi

# 1. Data, tokens, statistics; the teachers.
stage=1
for name in ${teachers}; do
    step --teacher_asr_config "${conf}/train_${name}.yaml" --teacher_exp "$(folder "${name}")" \
        --stage "${stage}" --stop_stage 5
    stage=5
done

# 2. The student, without KD and taught by all of them; everything decoded and scored.
for kd in ${kds}; do
    step --teacher_asr_config "" --teacher_exp "${ensemble% }" --teacher_weights "${weights}" \
        --kd_config "${conf}/${kd}.yaml" --kd_tag "${kd}${tag}" --stage 8
done

# 3. A table for each subset of eval2000, by its stm and glm: exp/yang2019_eval2000<tag>.md.
students=student
for kd in ${kds}; do students+=" student_kd_${kd}${tag}"; done
systems=()
for name in ${teachers} ${students}; do
    systems+=(--system "${name}" "$(folder "${name}")")
done
# ${python} may be several words.
${python} -m espnet_kd.bin.score_eval2000 "${systems[@]}" --inference_tag "${search}" \
    --baseline student --output "exp/yang2019_eval2000${tag}.md"
