#!/usr/bin/env bash
# Every row of the sparse students in RESULTS.md: three teachers (seeds), each trained on
# for as long dense, and pruned to 60 % and 90 %, without and with KD by itself. Run it
# again after a kill.
set -euo pipefail

seeds=${SEEDS:-0 1 2}
parallel=${PARALLEL:-2} # trainings at a time, one thread each
levels=${LEVELS:-0.9 0.6 0}
tag=decode_asr_model_valid.loss.ave
export OMP_NUM_THREADS=1

teacher() { echo "exp/asr_train_teacher_raw_bpe30_seed$1"; }
at_a_time() { # Each line of stdin holds options of run.sh.
    xargs -d '\n' -P "${parallel}" -I {} \
        bash -c './run.sh {} || { echo "failed: ./run.sh {}" >&2; exit 255; }'
}
systems() { # options of every sparse student
    local seed level
    for seed in ${seeds}; do
        local common
        common="--kd_config '' --teacher_exp $(teacher "${seed}") --sparse_config conf/sparse.yaml"
        for level in ${levels}; do
            local pruned="--seed ${seed} --kd_conf pruning.sparsity=${level}"
            echo "${common} --sparse_tag sparse${level} --sparse_args '${pruned} --kd_conf losses=[]'"
            echo "${common} --sparse_tag sparse${level}_kd --sparse_args '${pruned}'"
        done
    done
}

# 1. Data and teachers.
./run.sh --stop_stage 4
for seed in ${seeds}; do
    echo "--stage 5 --stop_stage 5 --teacher_asr_args '--seed ${seed}'"
done | at_a_time

# 2. Sparse students, then their decoding.
systems | sed 's/^/--stage 11 --stop_stage 11 /' | at_a_time
systems | sed "s/^/--stage 12 --stop_stage 12 --teacher_inference_config conf\/decode.yaml --inference_tag ${tag} /" |
    parallel=1 at_a_time

# 3. Teacher and students of the first seed in smaller forms, measured.
export_forms() { # FOLDER FORM...
    "${PYTHON:-python3}" -m espnet_kd.bin.export --exp "$1" --model_file valid.loss.ave.pth \
        --output_dir "$1/exported" --formats "${@:2}" --data_dir dump/raw/test \
        --inference_config conf/decode.yaml
}
first=${seeds%% *}
export_forms "$(teacher "${first}")" int8
for level in ${levels}; do
    [ "${level}" = 0 ] || export_forms "$(teacher "${first}")_sparse${level}_kd" csr int8
done

# 4. The tables: all against the teachers; those with KD against those without.
add() { # add NAME TAG
    local seed
    systems+=(--system "$1")
    for seed in ${seeds}; do systems+=("$(teacher "${seed}")$2"); done
}
report() {
    "${PYTHON:-python3}" -m espnet_kd.bin.report "${systems[@]}" \
        --inference_tag "${tag}" --inference_asr_model valid.loss.ave.pth "$@"
}
without=() with=()
systems=()
add teacher ""
for level in ${levels}; do
    add "${level}" "_sparse${level}"
    add "${level}+KD" "_sparse${level}_kd"
    without+=("${level}")
    with+=("${level}+KD")
done
report --teacher teacher --baseline teacher --output exp/sparse.md \
    --curve "without KD" "${without[@]}" --curve "with KD" "${with[@]}"
for level in ${levels}; do
    systems=()
    add "${level}" "_sparse${level}"
    add "${level}+KD" "_sparse${level}_kd"
    report --baseline "${level}" --output "exp/sparse${level}.md"
done
