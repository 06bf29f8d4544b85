#!/usr/bin/env bash
# Panchapagesan et al.: Efficient knowledge distillation for RNN-transducer models (ICASSP
# 2021), on LibriSpeech 960 h (the paper's main data are not public): dense transducers,
# pruned to 60 % and 90 % without and with KD on {label, blank, rest} by themselves; and a
# small Conformer, without and with KD by the dense one. RESULTS.md has the paper's numbers;
# conf/panchapagesan2020/*.yaml mark what is the paper's and what is ours.
#
#     ./run_panchapagesan2020.sh [options of kd.sh for every step; not --stop_stage, nor a
#                      --stage below 12: the steps set them, and what is done is skipped]
#     DENSE=conformer LEVELS=0.9 ./run_panchapagesan2020.sh    some of them
#     SPARSE_ARGS="--max_epoch 1 ..."    more options of training for the sparse models
#
# Cost (an estimate of espnet_kd.bin.plan, good to a factor of two; nothing was run; GPU:
# A100): dense RNN-T 12 GPU hours, Conformer 21; each sparse one 5 and 9; the small Conformer
# 14, with KD 21: 125 for all of it. Disk, beside LibriSpeech's 60 GB: 25 GB. Run it again
# after a kill.
set -euo pipefail

models=${DENSE:-rnnt conformer}
levels=${LEVELS:-0.6 0.9}
conf=conf/panchapagesan2020
search=decode
options=("$@")

folder() { echo "exp/asr_panchapagesan2020_$1"; }
task() { if [ "$1" = rnnt ]; then echo asr; else echo asr_transducer; fi; }
step() { # step DENSE OPTION...: of run.sh, with a dense model as the teacher
    ./run.sh --train_set train_960 --unlabelled_set "" --nbpe 1000 \
        --asr_config "${conf}/train_small_conformer.yaml" --asr_tag panchapagesan2020_small \
        --asr_stats_dir exp/asr_stats_panchapagesan2020 \
        --teacher_task "$(task "$1")" --teacher_asr_config "${conf}/train_$1.yaml" \
        --teacher_exp "$(folder "$1")" --teacher_inference_config "${conf}/decode.yaml" \
        --inference_config "${conf}/decode.yaml" --inference_tag "${search}" \
        --kd_config "${conf}/kd.yaml" "${@:2}" "${options[@]}"
}
sparse() { # sparse DENSE TAG OPTIONS: of training; the dense model is the "student" of the report
    step "$1" --kd_config "" --stage 11 --sparse_config "${conf}/sparse.yaml" \
        --sparse_tag "$2" --sparse_args "$3 ${SPARSE_ARGS:-}" \
        --asr_task "$(task "$1")" --asr_config "${conf}/train_$1.yaml" --asr_tag "panchapagesan2020_$1"
}

# 1. Data, tokens, statistics, dense models; 2. sparse ones, decoded and scored.
for model in ${models}; do
    step "${model}" --stop_stage 5
    for level in ${levels}; do
        sparse "${model}" "sparse${level}" "--kd_conf pruning.sparsity=${level} --kd_conf losses=[]"
        sparse "${model}" "sparse${level}_kd" "--kd_conf pruning.sparsity=${level}"
    done
done

# 3. The small Conformer.
[[ " ${models} " != *" conformer "* ]] || step conformer --stage 8

# 4. A table for each dense model and test set: exp/panchapagesan2020_<model>_<set>.md.
for model in ${models}; do
    dense=$(folder "${model}")
    systems=(--system dense "${dense}")
    for level in ${levels}; do
        systems+=(--system "${level}" "${dense}_sparse${level}"
            --system "${level}+KD" "${dense}_sparse${level}_kd")
    done
    if [ "${model}" = conformer ]; then
        systems+=(--system small "$(folder small)"
            --system small+KD "$(folder small)_kd_kd")
    fi
    ${PYTHON:-python3} -m espnet_kd.bin.report "${systems[@]}" \
        --inference_tag "${search}" --inference_asr_model valid.loss.ave.pth \
        --teacher dense --baseline dense --output "exp/panchapagesan2020_${model}_{set}.md"
done
