#!/usr/bin/env bash
# Every row of RESULTS.md: teacher, student on the labelled part, student on every
# reference, student with each preset on labelled + unlabelled audio, the transducer
# presets on the labelled part alone; three seeds each. Run it again after a kill.
set -euo pipefail

seeds=${SEEDS:-0 1 2}
parallel=${PARALLEL:-2} # trainings at a time, one thread each
presets="sequence error_weighted essence collapsed_lattice one_best_path"
labelled_presets="collapsed_lattice one_best_path"
teacher=exp/asr_train_teacher_raw_bpe30_seed0
student=exp/asr_train_student_raw_bpe30
tag=decode_asr_model_valid.loss.ave
export OMP_NUM_THREADS=1

at_a_time() { # Each line of stdin holds options of run.sh.
    xargs -d '\n' -P "${parallel}" -I {} \
        bash -c './run.sh {} || { echo "failed: ./run.sh {}" >&2; exit 255; }'
}
systems() { # NAME and options of every student
    local seed preset
    for seed in ${seeds}; do
        local common="--teacher_exp ${teacher} --asr_args '--seed ${seed}'"
        echo "${common} --stage 9 --kd_config ''"
        echo "${common} --stage 9 --kd_config '' --train_set train_full --asr_stats_dir exp/asr_stats_full --asr_exp exp/asr_full_seed${seed}"
        for preset in ${presets}; do
            echo "${common} --stage 10 --kd_config conf/kd/${preset}.yaml"
        done
        for preset in ${labelled_presets}; do
            echo "${common} --stage 10 --kd_config conf/kd/${preset}.yaml --kd_tag ${preset}_labelled --unlabelled_set ''"
        done
    done
}

# 1. Data, teachers, hypotheses, KD sets. The token list is the teacher's (stage 3).
./run.sh --stop_stage 4
full="--train_set train_full --teacher_train_set train_full --asr_stats_dir exp/asr_stats_full"
# shellcheck disable=SC2086
./run.sh ${full} --stage 2 --stop_stage 2 && ./run.sh ${full} --stage 4 --stop_stage 4
for seed in ${seeds}; do
    echo "--stage 5 --stop_stage 5 --teacher_asr_args '--seed ${seed}'"
done | at_a_time
# With a preset that needs the labelled set decoded too.
./run.sh --stage 6 --stop_stage 6 --teacher_exp "${teacher}" --kd_config conf/kd/sequence.yaml
for preset in ${presets}; do
    ./run.sh --teacher_exp "${teacher}" --stage 8 --stop_stage 8 --kd_config "conf/kd/${preset}.yaml" \
        --kd_set_args "--reference_text data/train_unlabelled/text_reference"
done
for preset in ${labelled_presets}; do
    ./run.sh --teacher_exp "${teacher}" --stage 8 --stop_stage 8 --kd_config "conf/kd/${preset}.yaml" \
        --kd_tag "${preset}_labelled" --unlabelled_set ""
done

# 2. Students, then their decoding (stage 12 takes what is trained).
systems | sed 's/--stage \(9\|10\)/--stage \1 --stop_stage \1/' | at_a_time
systems | sed 's/--stage \(9\|10\)/--stage 12 --stop_stage 12/' | parallel=1 at_a_time
for seed in ${seeds}; do
    ./run.sh --teacher_exp "exp/asr_train_teacher_raw_bpe30_seed${seed}" --kd_config "" --stage 12 --stop_stage 12 \
        --teacher_inference_config conf/decode.yaml --inference_tag "${tag}"
done

# 3. The table.
systems=()
add() { # add NAME EXP_BEFORE_THE_SEED [AFTER]
    local seed
    systems+=(--system "$1")
    for seed in ${seeds}; do systems+=("$2${seed}${3:-}"); done
}
add teacher exp/asr_train_teacher_raw_bpe30_seed
add labelled "${student}_seed"
add full exp/asr_full_seed
# shellcheck disable=SC2086
for name in ${presets} $(printf '%s_labelled ' ${labelled_presets}); do
    add "${name}" "${student}_seed" "_kd_${name}"
done
"${PYTHON:-python3}" -m espnet_kd.bin.report "${systems[@]}" \
    --inference_tag "${tag}" --inference_asr_model valid.loss.ave.pth \
    --teacher teacher --baseline labelled --ceiling full --output exp/results.md
