#!/usr/bin/env bash
# Every row of RESULTS.md: teacher, student on the labelled part, student on every
# reference, student with each preset on labelled + unlabelled audio, the transducer
# presets on the labelled part alone; three seeds each. Run it again after a kill.
set -euo pipefail

seeds=${SEEDS:-0 1 2}
parallel=${PARALLEL:-2} # trainings at a time, one thread each
presets=${PRESETS:-sequence error_weighted essence collapsed_lattice one_best_path}
labelled_presets=${LABELLED_PRESETS:-collapsed_lattice one_best_path}
export OMP_NUM_THREADS=1

run() { ./run.sh --inference_nj 1 "$@"; }
export -f run
at_a_time() { xargs -P "${parallel}" -I {} bash -c 'run {} >>exp/run_results.log 2>&1 || { echo "failed: run {}" >&2; exit 255; }'; }
full="--train_set train_full --asr_tag full --asr_stats_dir exp/asr_stats_full"
teacher=exp/asr_train_teacher_raw_bpe30_seed0

mkdir -p exp
./run.sh --stop_stage 4
# The token list stays the teacher's (stage 3), whatever the student trains on.
run ${full} --stage 2 --stop_stage 2
run ${full} --stage 4 --stop_stage 4 --teacher_train_set train_full
for seed in ${seeds}; do
    echo "--stage 5 --stop_stage 5 --teacher_asr_args '--seed ${seed}'"
done | at_a_time
./run.sh --stage 6 --stop_stage 6 --teacher_exp "${teacher}"

common="--teacher_exp ${teacher}"
for preset in ${presets}; do
    run ${common} --stage 8 --stop_stage 8 --kd_config "conf/kd/${preset}.yaml"
done
for preset in ${labelled_presets}; do
    run ${common} --stage 8 --stop_stage 8 --kd_config "conf/kd/${preset}.yaml" \
        --kd_tag "${preset}_labelled" --unlabelled_set ""
done

for seed in ${seeds}; do
    asr_args="--asr_args '--seed ${seed}'"
    echo "${common} ${asr_args} --stage 9 --stop_stage 9"
    echo "${common} ${full%--asr_tag*} --asr_tag full_seed${seed} --asr_stats_dir exp/asr_stats_full ${asr_args} --stage 9 --stop_stage 9"
    for preset in ${presets}; do
        echo "${common} ${asr_args} --stage 10 --stop_stage 10 --kd_config conf/kd/${preset}.yaml"
    done
    for preset in ${labelled_presets}; do
        echo "${common} ${asr_args} --stage 10 --stop_stage 10 --kd_config conf/kd/${preset}.yaml --kd_tag ${preset}_labelled --unlabelled_set ''"
    done
done | at_a_time
