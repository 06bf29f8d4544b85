#!/usr/bin/env bash
# Every row of the sparse students in RESULTS.md: three teachers (seeds), each trained on
# for as long dense, and pruned to 60 % and 90 %, without and with KD by itself. Run it
# again after a kill.
set -euo pipefail

seeds=${SEEDS:-0 1 2}
parallel=${PARALLEL:-2} # trainings at a time, one thread each
levels=${LEVELS:-0.9 0.6 0}
tag=decode_asr_model_valid.loss.ave
decoded=${tag}/test/text
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
runs() { for seed in ${seeds}; do echo "$(teacher "${seed}")$1/${decoded}"; done; }
system() { # NAME TAG: options of the report
    # shellcheck disable=SC2046
    printf -- '%s\n' --hyp "$1" $(runs "$2") --model "$1" "$(teacher "${first}")$2/valid.loss.ave.pth"
}
report() { "${PYTHON:-python3}" -m espnet_kd.bin.report --ref dump/raw/test/text "$@"; }
all=() without=() with=()
for level in ${levels}; do
    mapfile -t -O ${#all[@]} all < <(system "${level}" "_sparse${level}" && system "${level}+KD" "_sparse${level}_kd")
    without+=("${level}") with+=("${level}+KD")
done
mapfile -t dense < <(system teacher "")
report "${dense[@]}" "${all[@]}" --teacher teacher --baseline teacher \
    --curve "without KD" "${without[@]}" --curve "with KD" "${with[@]}" --output exp/sparse.md
for level in ${levels}; do
    mapfile -t pair < <(system "${level}" "_sparse${level}" && system "${level}+KD" "_sparse${level}_kd")
    report "${pair[@]}" --baseline "${level}" --output "exp/sparse${level}.md"
done
