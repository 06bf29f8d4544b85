# The functions of stages 6 and 12 to 14: teacher decoding, decoding, scoring, reports.
# Sourced by kd.sh.
# shellcheck shell=bash disable=SC2034,SC2154

# The teacher's hypotheses
holds_all() { # holds_all DIR FILE: whether the shards have as many lines as FILE
    [ "$(cat "$1"/hypotheses.*.jsonl 2>/dev/null | wc -l)" -eq "$(lines_of "$2")" ]
}
teacher_decode() { # teacher_decode SET: n-best of the first teacher
    local set=$1 dir=${decode_dir}/$1 key asked files chosen=() options
    [ -z "${teacher_inference_config}" ] ||
        chosen=(--inference_config "${teacher_inference_config}")
    # shellcheck disable=SC2206
    options=("${chosen[@]}" --nbest "${teacher_nbest}" ${teacher_inference_args})
    # Shards record their teacher, not the audio; the folder's marks record both.
    key=$(key_of "$(tables_of "${set}")")
    files="${teacher}/config.yaml ${teacher}/${teacher_model} ${options[*]}"
    asked=$(key_of "${files}" "${nj}" "${options[@]}")
    if [ "$(cat "${dir}/.command" "${dir}/.done" 2>/dev/null)" = \
        "${key}"$'\n'"${asked}" ] &&
        holds_all "${dir}" "${data_feats}/${set}/wav.scp"; then # a shard may be removed
        log "  done before: ${dir}"
        return
    fi
    [ ! -e "${dir}/.command" ] || [ "$(cat "${dir}/.command")" = "${key}" ] ||
        die "${dir} holds hypotheses of other audio:" \
            "${data_feats}/${set} has changed; delete the folder"
    begin "${dir}" "${key}"
    decode_with_teacher "${set}" "${dir}" "${options[@]}"
    end "${dir}" "${asked}"
}
decode_with_teacher() { # decode_with_teacher SET DIR [option...]
    local data=${data_feats}/$1 dir=$2 jobs
    jobs=$(jobs_for "${data}/wav.scp" "${nj}")
    [ ! -e "${dir}/hypotheses.$((jobs + 1)).jsonl" ] ||
        die "${dir} holds the shards of more than ${jobs} jobs: give the same --nj," \
            "or delete the folder"
    rm -rf "${dir}/logdir"
    split_keys "${data}/wav.scp" "${dir}/logdir" "${jobs}"
    # shellcheck disable=SC2086
    ${decode_cmd} --gpu "${inference_ngpu}" JOB=1:"${jobs}" \
        "${dir}"/logdir/decode.JOB.log \
        ${python} -m espnet_kd.bin.teacher_decode --data_dir "${data}" \
        --key_file "${dir}"/logdir/keys.JOB.scp --ngpu "${inference_ngpu}" \
        --teacher_config "${teacher}/config.yaml" \
        --teacher_model_file "${teacher}/${teacher_model}" \
        --output_file "${dir}"/hypotheses.JOB.jsonl "${@:3}" ||
        fail "teacher decoding" "${dir}"/logdir/decode.*.log
    grep -h ' utterances, ' "${dir}"/logdir/decode.*.log || true # each job's summary
}

# Systems and their searches
systems() { # NAME TASK FOLDER CHECKPOINT of teachers, student, student with KD, sparse
    local exp number=''
    for exp in "${teachers[@]}"; do # teacher, teacher2, ...
        echo "teacher${number} $(task_of "${exp}") ${exp} ${teacher_model}"
        number=$((${number:-1} + 1))
    done
    echo "student ${asr_task} ${asr_exp} ${inference_asr_model}"
    [ -z "${kd_tag}" ] || echo "student+KD ${asr_task} ${kd_exp} ${inference_asr_model}"
    [ -z "${sparse_config}" ] || echo "sparse $(task_of "${teacher}")" \
        "${sparse_exp} ${sparse_model:-${teacher_model}}"
}
find_trained() { # sets trained, the systems with a checkpoint; names those left out
    local name task exp model system all
    mapfile -t all < <(systems)
    trained=()
    for system in "${all[@]}"; do
        read -r name task exp model <<<"${system}"
        if [ -e "${exp}/${model}" ]; then
            trained+=("${system}")
        elif [ -e "${exp}/.done" ]; then
            die "${exp} is trained but has no ${model}: give --inference_asr_model" \
                "(--teacher_model, --sparse_model)"
        else
            log "  ${name} is left out: ${exp}/${model} not found"
        fi
    done
}
choose_lm() { # sets lm, options of decoding, and lm_name, part of a decoding's name
    lm=()
    lm_name=''
    if [ "${use_lm}" = true ] && [ -e "${lm_exp}/config.yaml" ]; then
        lm=(--lm_train_config "${lm_exp}/config.yaml"
            --lm_file "${lm_exp}/${inference_lm}")
        lm_name=_lm_$(basename "${lm_exp}")_$(stem_of "${inference_lm}")
    elif [ "${use_lm}" = true ] && [ ${#asr_sh[@]} -gt 0 ]; then
        fault "--use_lm true: ${lm_exp}/config.yaml not found: train it (asr.sh," \
            "stages 6 to 8), give --lm_exp, or --use_lm false"
    elif [ "${use_lm}" = true ]; then # without asr.sh this is only the default
        log "  --use_lm true: ${lm_exp}/config.yaml not found, no LM is used" \
            "except one in --inference_args"
    fi
    if [ "${use_ngram}" = true ]; then
        lm+=(--ngram_file "${ngram_exp}/${inference_ngram}")
        lm_name+=_ngram_$(basename "${ngram_exp}")_$(stem_of "${inference_ngram}")
    fi
}
choose_search() { # choose_search SYSTEM (4 words): sets config, args, tag and results
    local base=${3%/}
    config=${inference_config}
    args=${inference_args}
    tag=${inference_tag}
    if [[ $1 == teacher* && -n ${teacher_inference_config} ]]; then
        config=${teacher_inference_config}
        args=''
    elif [ "$2" != "${asr_task}" ]; then # it lacks options of the student's search
        config=''
        args=''
    fi
    is_here "${base}" || base=$(place_of "$3") # never write to another recipe's folder
    if [ -z "${tag}" ]; then
        tag=$([ -n "${config}" ] && name_of "${config}" || echo inference)
        tag+=$(echo "${args}" | sed -e 's/--/\_/g' -e 's/[ |=]//g')
        tag+=${lm_name}_asr_model_$(stem_of "$4")
    fi
    results=${base}/${tag}
}

# Decoding
decode_system() { # decode_system SYSTEM: all of eval_sets
    local name task exp model search set made before
    read -r name task exp model <<<"$1"
    choose_search "${name}" "${task}" "${exp}" "${model}"
    search="${config:+--config ${config} }${lm[*]:+${lm[*]} }${args}"
    log "  ${name} -> ${results}${search:+ (${search})}"
    for set in ${eval_sets}; do
        made="${exp}/config.yaml ${exp}/${model} ${lm[*]} $(tables_of "${set}")"
        before=${exp%/}/${tag}/${set}/text
        if ! is_here "${exp}" && [ "${before}" -nt "${exp}/${model}" ]; then
            log "    ${before}: already decoded by asr.sh, reused"
            once "${results}/${set}" "${before} ${made}" \
                cp "${before}" "${results}/${set}/text"
        elif is_here "${exp}" && [ ${#asr_sh[@]} -gt 0 ] &&
            [ "${set}" != "${valid_set}" ]; then
            # asr.sh makes its own search of these options; here they are for the key.
            # shellcheck disable=SC2086
            once "${results}/${set}" "${made}" \
                by_asr_sh 12 "${task}" "${exp}" "${model}" "${set}" ${search}
        else
            # shellcheck disable=SC2086
            once "${results}/${set}" "${made}" decode "${task}" "${exp}" "${model}" \
                "${set}" "${results}/${set}" ${search}
        fi
    done
}
decode() { # decode TASK EXP MODEL SET DIR [option...]: stock (ends kd.sh itself)
    local task=$1 exp=$2 model=$3 data=${data_feats}/$4 dir=$5 jobs file part audio
    jobs=$(jobs_for "${data}/wav.scp" "${inference_nj}") || exit
    rm -rf "${dir}/logdir" # outputs of more jobs would be joined too
    split_keys "${data}/wav.scp" "${dir}/logdir" "${jobs}"
    audio=$(data_of test "${data}" | awk 'NR == 1 { print $2 }')
    # shellcheck disable=SC2086
    ${decode_cmd} --gpu "${inference_ngpu}" JOB=1:"${jobs}" \
        "${dir}"/logdir/decode.JOB.log \
        ${python} -m espnet_kd.shim -m espnet2.bin."${task}"_inference \
        --batch_size "${batch_size}" --ngpu "${inference_ngpu}" \
        --data_path_and_name_and_type "${audio}" \
        --key_file "${dir}"/logdir/keys.JOB.scp \
        --asr_train_config "${exp}"/config.yaml --asr_model_file "${exp}/${model}" \
        --output_dir "${dir}"/logdir/output.JOB "${@:6}" </dev/null ||
        fail decoding "${dir}"/logdir/decode.*.log
    for file in text token score; do
        for part in $(seq "${jobs}"); do
            cat "${dir}/logdir/output.${part}/1best_recog/${file}" || exit
        done | LC_ALL=C sort -k1,1 >"${dir}/${file}" ||
            die "${dir}/logdir: an output lacks ${file}"
    done
}
by_asr_sh() { # by_asr_sh STAGE TASK EXP MODEL SETS: decode or score (ends kd.sh itself)
    local log=$3/${tag}/asr_stage$1.log sets=" $5 " valid=false own
    if [[ ${sets} == *" ${valid_eval_set} "* ]]; then
        sets=${sets/" ${valid_eval_set} "/ }
        valid=true
    fi
    own=(--inference_config "${config}" --inference_asr_model "$4"
        --inference_tag "${tag}")
    [ "${args}" = "${inference_args}" ] || own+=(--inference_args "${args}")
    mkdir -p "${log%/*}"
    # The shim: stock inference of transducers needs a stand-in for warprnnt_pytorch.
    "${asr_sh[@]}" --asr_task "$2" --asr_exp "$3" "${own[@]}" --test_sets "${sets# }" \
        --eval_valid_set "${valid}" --python "${python} -m espnet_kd.shim" \
        --stage "$1" --stop_stage "$1" </dev/null >>"${log}" 2>&1 ||
        fail asr.sh "${log}"
}

# Scoring and reports
scored_text() { # scored_text TEXT CLEANER OUTPUT: prints the file to score
    local filter=()
    [ ! -x local/wer_output_filter ] || filter=(--filter local/wer_output_filter)
    if [ "${nlsyms_txt} $2" = "none none" ] && [ ${#filter[@]} -eq 0 ]; then
        echo "$1"
    else
        # shellcheck disable=SC2086
        act ${python} -m espnet_kd.bin.scored_text --text "$1" --cleaner "$2" \
            --nlsyms_txt "${nlsyms_txt}" "${filter[@]}" --output "$3" >&2 || exit
        echo "$3"
    fi
}
find_decoded() { # find_decoded SET: sets options and files of its report; fills scored
    local name task exp model system ref hyp
    names=" "
    options=()
    files=()
    for system in "${trained[@]}"; do
        read -r name task exp model <<<"${system}"
        choose_search "${name}" "${task}" "${exp}" "${model}"
        [ -e "${results}/$1/text" ] || continue
        ref=${results}/$1/score_wer/ref.txt
        ref=$(scored_text "${data_feats}/$1/text" "${cleaner}" "${ref}")
        hyp=${results}/$1/score_wer/hyp.txt
        hyp=$(scored_text "${results}/$1/text" "${hyp_cleaner}" "${hyp}")
        [ ${#options[@]} -gt 0 ] || options=(--ref "${ref}")
        files+=("${ref}" "${hyp}" "${exp}/${model}")
        names+="${name} "
        options+=(--hyp "${name}" "${hyp}" --model "${name}" "${exp}/${model}")
        scored+=("${name} ${results}/$1 ${ref} ${hyp}")
    done
    [ ${#options[@]} -gt 0 ] || is_selected 12 ||
        die "no decoded text for $1: run stage 12"
}
score_all() { # score_all "NAME FOLDER REF HYP"...: each folder once
    local name dir ref hyp system folders=" "
    for system in "$@"; do
        read -r name dir ref hyp <<<"${system}"
        # A teacher may be the student too.
        [[ ${folders} != *" ${dir} "* ]] || continue
        folders+="${dir} "
        dir+=/score_wer
        # shellcheck disable=SC2086
        once "${dir}" "${ref} ${hyp}" quietly ${python} -m espnet_kd.bin.report \
            --ref "${ref}" --hyp "${name}" "${hyp}" --output "${dir}/result.md"
        log "  ${dir}/result.md"
    done
}
score_as_asr_sh() { # the recipe's own scoring of every folder, as asr.sh does it
    local name task exp model system folders=" " set sets=''
    for set in ${eval_sets}; do [ "${set}" = "${valid_set}" ] || sets+="${set} "; done
    for system in "${trained[@]}"; do
        read -r name task exp model <<<"${system}"
        choose_search "${name}" "${task}" "${exp}" "${model}"
        [[ ${folders} != *" ${results} "* ]] || continue
        folders+="${results} "
        if [ ${#asr_sh[@]} -eq 0 ]; then
            # shellcheck disable=SC2086
            [ ! -x local/score.sh ] || python="${python}" local/score.sh \
                ${local_score_opts} "${results%/*}" </dev/null
        elif [ -z "${sets}" ] || ! is_here "${exp}"; then
            continue # asr.sh decoded nothing, or has scored it
        elif command -v sclite >/dev/null; then
            by_asr_sh 13 "${task}" "${exp}" "${model}" "${sets}"
            log "  ${exp}/RESULTS.md"
        else
            log "  ${exp}: sclite is not on PATH, asr.sh's own scoring is left out" \
                "(Debian: apt install sctk)"
        fi
    done
}
report() { # report SET: of what find_decoded found
    local path mark
    path=$(report_of "$1")
    mark=${path%/*}/.${path##*/} # the mark of the experiment's folder is its training's
    [[ ${names} != *" teacher "* ]] || options+=(--teacher teacher)
    [[ ${names} != *" student "* ]] || options+=(--baseline student)
    [ -e "${path}.md" ] || act rm -f "${mark}/.done"
    # shellcheck disable=SC2086
    once "${mark}" "${files[*]}" quietly \
        ${python} -m espnet_kd.bin.report "${options[@]}" --output "${path}.md"
    show "${path}.md"
}
