#!/usr/bin/env bash
# Z. Yang, C. Zhang, W. Zhang, Jin, Chen: Essence knowledge distillation for speech recognition
# (arXiv 1906.10834, Interspeech 2019), on Switchboard: an ensemble of different models teaches
# a student the largest of its mean posteriors, beside the hard labels. Compared are the
# teachers, the student alone, with the top 20 outputs (essence) and with all of them (full).
# What is the paper's and what is ours stands in conf/yang2019/*.yaml; RESULTS.md has the
# paper's numbers.
#
#     ./run_yang2019.sh [options of kd.sh for every step]
#     TEACHERS="conformer blstm" WEIGHTS="2 1" KDS=essence ./run_yang2019.sh
#
# Cost (an estimate of espnet_kd.bin.plan, good to a factor of two; nothing was run; 300 h at
# three speeds, one GPU like an A100): teachers 50, 25 and 10 GPU hours (the BLSTM's steps wait
# for one another: rather 20), the student 17, with KD twice 49: 200 GPU hours. Disk: 15 GB of
# mu-law calls, 50 GB of utterances, 10 GB of models. Run it again after a kill.
set -euo pipefail

teachers=${TEACHERS:-conformer transformer blstm}
weights=${WEIGHTS:-} # one for each teacher; equal if empty
kds=${KDS:-essence full}
conf=conf/yang2019
search=decode
options=("$@")

step() { # step OPTION...: of run.sh
    ./run.sh --asr_config "${conf}/train_student.yaml" --asr_tag yang2019_student \
        --inference_tag "${search}" "$@" "${options[@]}"
}
ensemble=
for name in ${teachers}; do ensemble+="exp/asr_yang2019_${name} "; done

# 1. Data, tokens, statistics; the teachers.
stage=1
for name in ${teachers}; do
    step --teacher_asr_config "${conf}/train_${name}.yaml" \
        --teacher_exp "exp/asr_yang2019_${name}" --stage "${stage}" --stop_stage 5
    stage=5
done

# 2. The student, without KD and taught by all of them; everything decoded and scored.
for kd in ${kds}; do
    step --teacher_asr_config "" --teacher_exp "${ensemble% }" --teacher_weights "${weights}" \
        --kd_config "${conf}/${kd}.yaml" --stage 8
done

# 3. One table for each subset of eval2000, by its stm and glm: exp/yang2019_eval2000.md.
systems=()
for decoded in exp/asr_yang2019_*/"${search}"/eval2000/text; do
    name=${decoded#exp/asr_yang2019_}
    systems+=(--hyp "${name%%/*}" "${decoded}")
done
"${PYTHON:-python3}" -m espnet_kd.bin.score_eval2000 "${systems[@]}" --baseline student \
    --output exp/yang2019_eval2000.md
