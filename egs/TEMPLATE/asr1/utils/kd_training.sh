# The functions of stages 4 to 11: statistics, the KD set, training. Sourced by kd.sh.
# shellcheck shell=bash disable=SC2034,SC2154

# Statistics
stats() { # stats TASK CONFIG SET STATS_DIR [option...]
    local known
    may_write "$4" "$4/train/speech_shape" || return 0
    known="$(tables_of "$3" "${valid_set}") ${token_list} ${bpemodel}"
    # shellcheck disable=SC2086
    once "$4" "${known}" \
        collect_stats "$1" "$2" "$3" "$4" ${model_options} "${@:5}"
}
collect_stats() { # collect_stats TASK CONFIG SET STATS_DIR [option...] (ends kd.sh)
    local task=$1 config=$2 data=${data_feats}/$3 dir=$4 part jobs tokens opts=''
    local valid=${data_feats}/${valid_set}
    jobs=$(jobs_for "${data}/wav.scp" "${nj}") || exit
    jobs=$(jobs_for "${valid}/wav.scp" "${jobs}") || exit
    rm -rf "${dir}/logdir"
    split_keys "${data}/wav.scp" "${dir}/logdir/train" "${jobs}"
    split_keys "${valid}/wav.scp" "${dir}/logdir/valid" "${jobs}"
    # shellcheck disable=SC2046,SC2086
    ${train_cmd} JOB=1:"${jobs}" "${dir}"/logdir/stats.JOB.log \
        ${python} -m espnet_kd.bin."${task}"_train --collect_stats true \
        --config "${config}" $(data_of train "${data}") $(data_of valid "${valid}") \
        --train_shape_file "${dir}"/logdir/train/keys.JOB.scp \
        --valid_shape_file "${dir}"/logdir/valid/keys.JOB.scp \
        --output_dir "${dir}"/logdir/stats.JOB "${@:5}" ||
        fail statistics "${dir}"/logdir/stats.*.log
    for part in $(seq "${jobs}"); do
        opts+="--input_dir ${dir}/logdir/stats.${part} "
    done
    [ "${feats_normalize}" = global_mvn ] || opts+="--skip_sum_stats"
    # shellcheck disable=SC2086
    ${python} -m espnet2.bin.aggregate_stats_dirs ${opts} --output_dir "${dir}" ||
        die "${dir}: the parts in logdir could not be joined"
    tokens=$(lines_of "${token_list}")
    for part in train valid; do
        awk -v n="${tokens}" '{ print $0 "," n }' "${dir}/${part}/text_shape" \
            >"${dir}/${part}/text_shape.${token_type}"
    done
}

# KD set and presets
preset_options() {
    ${python} -m espnet_kd.bin.preset options --kd_config "${kd_config}"
}
read_preset() { # sets the options of kd_set, and of them labelled_targets
    [ -n "${kd_config}" ] && [ -z "${kd_set_options}" ] || return 0
    kd_set_options="$(preset_options) ${kd_set_args}"
    labelled_targets=$(echo "--labelled_targets reference ${kd_set_options}" |
        sed -E 's/.*--labelled_targets[= ]+([a-z]+).*/\1/')
}
join_targets() { # join_targets [option...]: the KD set; its mark is beside its shapes
    local files
    [ -e "${kd_data}/stats.json" ] || begin "${kd_data}_shapes" "no set yet"
    files="$(tables_of "${train_set}") ${token_list} ${bpemodel} $*"
    # shellcheck disable=SC2086
    once "${kd_data}_shapes" "${files}" ${python} -m espnet_kd.bin.kd_set "$@"
}
configure() { # configure EXP merge|sparse CONFIG PRESET [option...]: EXP/train.yaml
    local exp=$1 key
    key=$(key_of "$*" "${@:2}")
    if is_current "${exp}/train.yaml" "${key}"; then return; fi
    ${python} -m espnet_kd.bin.preset "$2" --asr_config "$3" --kd_config "$4" \
        --output_file "${exp}/train.new.yaml" "${@:5}"
    if [ -e "${exp}/checkpoint.pth" ] &&
        ! cmp -s "${exp}/train.new.yaml" "${exp}/train.yaml"; then
        rm "${exp}/train.new.yaml"
        refuse_other "${exp}"
    fi
    mv "${exp}/train.new.yaml" "${exp}/train.yaml"
    echo "${key}" >"${exp}/.train.yaml"
}
teach() { # sets teaching, the options that name the teachers
    teaching=(--teacher_config "${teachers[@]/%//config.yaml}"
        --teacher_model_file "${teachers[@]/%//${teacher_model}}")
    # shellcheck disable=SC2206
    [ -z "${teacher_weights}" ] || teaching+=(--teacher_weight ${teacher_weights})
}

# Training
is_foreign() { # is_foreign EXP: trained by asr.sh, so used as it is
    [ ! -e "$1/.command" ] && [ -e "$1/config.yaml" ] || return
    compgen -G "$1/*.ave*.pth" >/dev/null ||
        die "$1 holds a training that kd.sh did not begin and that has not ended:" \
            "end it, or delete the folder"
    log "  $1 was not trained by kd.sh: used as it is"
}
# FILEs as for once.
train() { # train TASK CONFIG DATA SHAPES STATS EXP "FILE..." [option...]
    local task=$1 config=$2 data=$3 shapes=$4 stats=$5 exp=$6 files=$7
    local valid=${data_feats}/${valid_set} key command normalize=() splits=''
    if is_foreign "${exp}"; then return; fi
    [ "${feats_normalize}" != global_mvn ] ||
        normalize=(--normalize global_mvn
            --normalize_conf stats_file="${stats}/train/feats_stats.npz")
    # Frames of padding are kept out of every model that a recipe trains.
    # shellcheck disable=SC2046,SC2206,SC2207
    command=(${python} -m espnet_kd.bin."${task}"_train --config "${config}"
        ${model_options} $(data_of train "${data}") $(data_of valid "${valid}")
        --train_shape_file "${shapes}/speech_shape"
        --train_shape_file "${shapes}/text_shape.${token_type}"
        --valid_shape_file "${stats}/valid/speech_shape"
        --valid_shape_file "${stats}/valid/text_shape.${token_type}"
        --fold_length "${asr_speech_fold_length}00" # of samples: times 100, as asr.sh
        --fold_length "${asr_text_fold_length}" --kd_conf true_lengths=true
        "${normalize[@]}" --resume true --output_dir "${exp}" "${@:8}")
    if [ "${num_splits_asr}" != 1 ]; then
        splits=${exp}/splits${num_splits_asr}
        command=("${command[@]/#"${data}/"/"${splits}/"}")
        command=("${command[@]/#"${shapes}/"/"${splits}/"}" --multiple_iterator true)
    fi
    files+=" $(tables_of "${data##*/}" "${valid_set}") ${token_list} ${bpemodel}"
    files+=" ${shapes}/speech_shape ${stats}/.command ${stats}/train/feats_stats.npz"
    key=$(key_of "${files}" "${command[@]}")
    is_done "${exp}" "${key}" && return
    # Without a checkpoint ESPnet has nothing to resume.
    [ ! -e "${exp}/checkpoint.pth" ] || [ "$(cat "${exp}/.command")" = "${key}" ] ||
        refuse_other "${exp}"
    begin "${exp}" "${key}"
    [ -z "${splits}" ] || split_tables "${data}" "${shapes}" "${splits}"
    launch "${exp}" "${command[@]}"
    end "${exp}"
}
split_tables() { # split_tables DATA SHAPES DIR: as asr.sh, with the weights of a KD set
    local tables=("$1/wav.scp" "$1/text")
    [ ! -e "$1/kd_weight" ] || tables+=("$1/kd_weight")
    ${python} -m espnet2.bin.split_scps --num_splits "${num_splits_asr}" \
        --output_dir "$3" \
        --scps "${tables[@]}" "$2/speech_shape" "$2/text_shape.${token_type}"
}
launch() { # launch EXP COMMAND...: train on GPUs, through the queue
    local exp=$1 job=$1/train.log log=$1/train.log follower earlier code=0
    # SGE does not allow "/" in a name.
    [[ ${cuda_cmd} != *queue*.pl* ]] || job=$(basename "${exp}")
    # One line per epoch; an existing log is that of an earlier run.
    earlier=$(stat -c %i "${log}" 2>/dev/null) || true
    ${python} "${here}/utils/follow_epochs.py" "${log}" "${earlier}" &
    follower=$!
    # The launcher repeats the log when it fails; our last line quotes its error.
    {
        ${python} -m espnet2.bin.launch --cmd "${cuda_cmd} --name ${job}" \
            --log "${log}" --ngpu "${ngpu}" --num_nodes "${num_nodes}" \
            --init_file_prefix "${exp}"/.dist_init_ \
            --multiprocessing_distributed true -- "${@:2}" 2>&1 >&3 |
            sed -u '/^Command .* returned non-zero/,$d' | tee "${exp}/launch.log" >&2
    } 3>&1 || code=$?
    kill "${follower}" 2>/dev/null || true
    wait "${follower}" || true
    [ "${code}" -ne 0 ] || return 0
    # Without a new log it was the launcher, or what it called, that failed.
    [ -e "${log}" ] && [ "$(stat -c %i "${log}")" != "${earlier}" ] ||
        log=${exp}/launch.log
    fail training "${log}"
}
