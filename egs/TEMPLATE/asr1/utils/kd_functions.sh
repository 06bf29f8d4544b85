# The functions of kd.sh, sourced by it: they read its options and names.
# shellcheck shell=bash disable=SC2034,SC2154

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') (kd.sh) $*"; }
die() { log "Error: $*" >&2; exit 1; }
faults=()
refusal_in() { # refusal_in LOG: what a failed command said, its last exception where there is one
    awk '/^Traceback \(most recent call last\)/ { raised = 1; next }
        raised && /^[^ \t]/ { error = $0; raised = 0 }
        /^# Ended \(code (-9|137)\)/ { error = "killed, as for lack of memory" }
        /^[^# \t]/ && !/ INFO: / { last = $0 }
        END { print error != "" ? error : last }' "$1" | sed -E 's/^([A-Za-z_0-9]+\.)+([A-Z][A-Za-z]+:)/\2/'
}
fail() { # fail WHAT LOG...: end with what the command of a LOG that tells of a failure said
    local what=$1 file=$2 said=
    shift
    for file in "$@"; do
        [ -e "${file}" ] || continue
        said=$(refusal_in "${file}")
        ! grep -q '^# Ended (code 0)' "${file}" && break
    done
    case ${said} in
    UnsafeLoadRefusedError*)
        said+=" This training was begun with an ESPnet before 202609, whose checkpoints the installed one loads only when told to: if the folder is your own, put ESPNET_ALLOW_UNSAFE_TORCH_LOAD=1 before the same command"
        ;;
    esac
    die "${what} failed, see ${file}${said:+: ${said}}"
}
fault() { faults+=("$*"); } # fault MESSAGE: kd.sh ends once all faults are found
need() { for name in "$@"; do [ -n "${!name}" ] || fault "--${name} is needed (see --help)"; done; }

# Stages
is_wanted() { # is_wanted STAGE
    [ "${stage}" -le "$1" ] && [ "$1" -le "${stop_stage}" ] || return 1
    [[ ! " ${skip_stages} " =~ [[:space:]]$1[[:space:]] ]]
}
runs() { # runs STAGE WHAT: whether a stage is asked for; says what it does
    is_wanted "$1" && log "Stage $1: $2"
}
check() { # check [option]: end with every fault of what is asked for, if there is one
    local name words=()
    for name in ${resolved}; do words+=("${name}=${!name}"); done
    ${python} -m espnet_kd.bin.check "$@" "${words[@]}" "${faults[@]/#/fault=}" || exit
}
act() { "$@"; } # act COMMAND...: what a stage does each time
quietly() { "$@" >/dev/null; }
show() { cat "$1"; }

# A folder remembers the command that began it (.command) and that it ended well (.done).
key_of() { # key_of "FILE..." WORD...: a command's words and checksums of what it reads
    local file words="${*:2}"
    echo "${words//"${python} "/}"
    for file in $1 $(printf '%s\n' "${@:2}" | grep '\.yaml$' || true); do
        [ ! -f "${file}" ] || cksum "${file}"
    done
}
is_done() { # is_done DIR KEY
    [ -e "$1/.done" ] && [ "$(cat "$1/.command" 2>/dev/null)" = "$2" ] && log "  done before: $1"
}
begin() { # begin DIR KEY
    mkdir -p "$1"
    rm -f "$1/.done"
    echo "$2" >"$1/.command"
}
end() { echo "${2:-}" >"$1/.done"; } # end DIR [NOTE]
once() { # once DIR "FILE..." COMMAND...: skip what has ended well in DIR from the same FILEs
    local dir=$1 key
    key=$(key_of "${@:2}")
    is_done "${dir}" "${key}" && return
    begin "${dir}" "${key}"
    "${@:3}" || return # set -e does not hold within a condition
    end "${dir}"
}
# A file remembers likewise, in a hidden one beside it, what it was made from.
is_current() { # is_current FILE KEY
    [ -e "$1" ] && [ "$(cat "${1%/*}/.${1##*/}" 2>/dev/null)" = "$2" ]
}
is_ours() { [ -e "$1/.command" ] || [ -e "$1/.done" ]; } # is_ours DIR: begun by kd.sh
is_here() { # is_here DIR: begun by kd.sh in this recipe
    is_ours "$1" && [[ ($1 != ../* && $1 != /*) || $1 == "${PWD}"/* ]]
}
may_write() { # may_write DIR FILE: not where DIR holds a FILE that asr.sh made
    is_ours "$1" || [ ! -e "$2" ] && return
    log "  $2 was not made by kd.sh: left as it is"
    return 1
}
name_of() { basename "$1" .yaml; }
tag_of_args() { echo "$1" | sed -e 's/--/\_/g' -e 's/[ |=/]//g'; } # tag_of_args ARGS
tag_of() { # tag_of CONFIG ARGS
    local tag
    tag="$(name_of "$1")_${feats_type}_${_lang}${token_tag}"
    [ -z "$2" ] || tag+=$(tag_of_args "$2")
    [ -z "${speed_perturb_factors}" ] || tag+=_sp
    echo "${tag}"
}
frontend_of() { [ ! -f "$1" ] || awk '/^[a-z]/ { on = /^frontend/ } on' "$1"; } # frontend_of CONFIG
task_of() { # task_of TEACHER: of a trained one, told by its configuration
    if [ ! -e "$1/config.yaml" ]; then
        echo "${teacher_task:-${asr_task}}"
    elif grep -q '^joint_network_conf' "$1/config.yaml"; then
        echo asr_transducer
    else
        echo asr
    fi
}
place_of() { # place_of FOLDER: where we put what a model said that another recipe trained
    local name=${1%/}
    name=${name#"${expdir}"/}
    name=${name//..\//}
    name=${name#/}
    echo "${expdir}/teacher_decode/${name//\//_}"
}
choose_lm() { # sets lm, options of decoding, and lm_name, part of a decoding's name
    lm=() lm_name=
    if [ "${use_lm}" = true ] && [ -e "${lm_exp}/config.yaml" ]; then
        lm=(--lm_train_config "${lm_exp}/config.yaml" --lm_file "${lm_exp}/${inference_lm}")
        lm_name=_lm_$(basename "${lm_exp}")_$(stem_of "${inference_lm}")
    elif [ "${use_lm}" = true ]; then
        # Without asr.sh, --use_lm true is no more than its default.
        if [ ${#asr_sh[@]} -gt 0 ]; then
            fault "--use_lm true: ${lm_exp}/config.yaml not found: train it (asr.sh, stages 6 to 8), give --lm_exp, or --use_lm false"
        else
            log "  --use_lm true: ${lm_exp}/config.yaml not found, no LM is used but one that --inference_args names"
        fi
    fi
    if [ "${use_ngram}" = true ]; then
        lm+=(--ngram_file "${ngram_exp}/${inference_ngram}")
        lm_name+=_ngram_$(basename "${ngram_exp}")_$(stem_of "${inference_ngram}")
    fi
}
stem_of() { echo "$1" | sed -e 's/\//_/g' -e 's/\.[^.]*$//'; }
lines_of() { grep -c '' "$1" || true; }
split_keys() { # split_keys FILE DIR JOBS: FILE's lines over DIR/keys.N.scp in equal parts
    mkdir -p "$2"
    rm -f "$2"/keys.*.scp
    awk -v jobs="$3" -v lines="$(lines_of "$1")" -v keys="$2/keys." \
        '{ print > (keys (int((NR - 1) * jobs / lines) + 1) ".scp") }' "$1"
}
jobs_for() { # jobs_for FILE WANTED: no more jobs than utterances
    local lines
    lines=$(lines_of "$1")
    [ "${lines}" -gt 0 ] || die "$1 is empty"
    echo $((lines < $2 ? lines : $2))
}
tables_of() { # tables_of SET...: files by which a formatted set is known
    local set
    for set in "$@"; do
        printf "${data_feats}/${set}/%s\n" .command wav.scp text utt2num_samples kd_weight
    done
}
data_of() { # data_of train|valid DIR: ESPnet's options for audio and text of a data folder
    # kaldi_ark reads archives, and files among them.
    local type=sound
    ! grep -qsE '\.ark:[0-9]+$' "$2/wav.scp" || type=kaldi_ark
    echo "--$1_data_path_and_name_and_type $2/wav.scp,speech,${type}"
    [ ! -e "$2/text" ] || echo "--$1_data_path_and_name_and_type $2/text,text,text"
    [ ! -e "$2/kd_weight" ] || echo "--$1_data_path_and_name_and_type $2/kd_weight,kd_weight,text_float"
}
collect_stats() { # collect_stats TASK CONFIG SET STATS_DIR [option...] (called by once: dies itself)
    local task=$1 config=$2 set=$3 dir=$4 part jobs opts=""
    shift 4
    jobs=$(jobs_for "${data_feats}/${set}/wav.scp" "${nj}") || exit
    jobs=$(jobs_for "${data_feats}/${valid_set}/wav.scp" "${jobs}") || exit
    rm -rf "${dir}/logdir"
    split_keys "${data_feats}/${set}/wav.scp" "${dir}/logdir/train" "${jobs}"
    split_keys "${data_feats}/${valid_set}/wav.scp" "${dir}/logdir/valid" "${jobs}"
    # shellcheck disable=SC2046,SC2086
    ${train_cmd} JOB=1:"${jobs}" "${dir}"/logdir/stats.JOB.log \
        ${python} -m espnet_kd.bin."${task}"_train --collect_stats true --config "${config}" \
        $(data_of train "${data_feats}/${set}") $(data_of valid "${data_feats}/${valid_set}") \
        --train_shape_file "${dir}"/logdir/train/keys.JOB.scp \
        --valid_shape_file "${dir}"/logdir/valid/keys.JOB.scp \
        --output_dir "${dir}"/logdir/stats.JOB "$@" || fail statistics "${dir}"/logdir/stats.*.log
    for part in $(seq "${jobs}"); do opts+="--input_dir ${dir}/logdir/stats.${part} "; done
    [ "${feats_normalize}" = global_mvn ] || opts+="--skip_sum_stats"
    # shellcheck disable=SC2086
    ${python} -m espnet2.bin.aggregate_stats_dirs ${opts} --output_dir "${dir}" ||
        die "${dir}: the parts in logdir could not be joined"
    local tokens
    tokens=$(lines_of "${token_list}")
    for part in train valid; do
        awk -v n="${tokens}" '{ print $0 "," n }' "${dir}/${part}/text_shape" >"${dir}/${part}/text_shape.${token_type}"
    done
}
refuse_other() { die "$1 holds a training with other options or data: give another --asr_tag, --kd_tag or --sparse_tag (a teacher: --teacher_exp), or delete the folder"; }
is_foreign() { # is_foreign EXP: trained by asr.sh, so taken as it is
    [ ! -e "$1/.command" ] && [ -e "$1/config.yaml" ] || return
    compgen -G "$1/*.ave*.pth" >/dev/null || die "$1 holds a training that kd.sh did not begin and that has not ended: end it, or delete the folder"
    log "  $1 was not trained by kd.sh: taken as it is"
}
launch() { # launch EXP COMMAND...: train on GPUs, through the queue
    local exp=$1 job=$1/train.log log=$1/train.log follower earlier code=0
    [[ ${cuda_cmd} != *queue*.pl* ]] || job=$(basename "${exp}") # SGE takes no "/" in a name
    # A line an epoch; a log that is there already is one of an earlier run.
    earlier=$(stat -c %i "${log}" 2>/dev/null) || true
    ${python} "${here}/utils/follow_epochs.py" "${log}" "${earlier}" &
    follower=$!
    # The launcher repeats the log where it fails; kd.sh's last line says what is in it.
    {
        ${python} -m espnet2.bin.launch --cmd "${cuda_cmd} --name ${job}" --log "${log}" \
            --ngpu "${ngpu}" --num_nodes "${num_nodes}" --init_file_prefix "${exp}"/.dist_init_ \
            --multiprocessing_distributed true -- "${@:2}" 2>&1 >&3 |
            sed -u '/^Command .* returned non-zero/,$d' | tee "${exp}/launch.log" >&2
    } 3>&1 || code=$?
    kill "${follower}" 2>/dev/null || true
    wait "${follower}" || true
    [ "${code}" -ne 0 ] || return 0
    # Without a new log it was the launcher, or what it called, that failed.
    [ -e "${log}" ] && [ "$(stat -c %i "${log}")" != "${earlier}" ] || log=${exp}/launch.log
    fail training "${log}"
}
split_tables() { # split_tables DATA SHAPES DIR: as asr.sh does, with the weights of a KD set
    local tables=("$1/wav.scp" "$1/text")
    [ ! -e "$1/kd_weight" ] || tables+=("$1/kd_weight")
    ${python} -m espnet2.bin.split_scps --num_splits "${num_splits_asr}" --output_dir "$3" \
        --scps "${tables[@]}" "$2/speech_shape" "$2/text_shape.${token_type}"
}
train() { # train TASK CONFIG DATA SHAPES STATS EXP "FILE..." [option...]; FILEs as for once
    local task=$1 config=$2 data=$3 shapes=$4 stats=$5 exp=$6 files=$7 key command normalize=() splits=""
    shift 7
    if is_foreign "${exp}"; then return; fi
    [ "${feats_normalize}" != global_mvn ] || normalize=(--normalize global_mvn --normalize_conf stats_file="${stats}/train/feats_stats.npz")
    # Frames of padding are kept out of every model that a recipe trains.
    # shellcheck disable=SC2046,SC2206
    command=(${python} -m espnet_kd.bin."${task}"_train --config "${config}" ${model_options}
        $(data_of train "${data}") $(data_of valid "${data_feats}/${valid_set}")
        --train_shape_file "${shapes}/speech_shape"
        --train_shape_file "${shapes}/text_shape.${token_type}"
        --valid_shape_file "${stats}/valid/speech_shape"
        --valid_shape_file "${stats}/valid/text_shape.${token_type}"
        --fold_length $((asr_speech_fold_length * 100)) --fold_length "${asr_text_fold_length}"
        --kd_conf true_lengths=true "${normalize[@]}" --resume true --output_dir "${exp}" "$@")
    if [ "${num_splits_asr}" -gt 1 ]; then
        splits=${exp}/splits${num_splits_asr}
        command=("${command[@]/#"${data}/"/"${splits}/"}")
        command=("${command[@]/#"${shapes}/"/"${splits}/"}" --multiple_iterator true)
    fi
    files+=" $(tables_of "${data##*/}" "${valid_set}") ${token_list} ${bpemodel} ${shapes}/speech_shape ${stats}/.command ${stats}/train/feats_stats.npz"
    key=$(key_of "${files}" "${command[@]}")
    is_done "${exp}" "${key}" && return
    # Without a checkpoint there is nothing that ESPnet would go on from.
    [ ! -e "${exp}/checkpoint.pth" ] || [ "$(cat "${exp}/.command")" = "${key}" ] || refuse_other "${exp}"
    begin "${exp}" "${key}"
    [ -z "${splits}" ] || split_tables "${data}" "${shapes}" "${splits}"
    launch "${exp}" "${command[@]}"
    end "${exp}"
}
holds_all() { # holds_all DIR FILE: whether the shards hold as many utterances as FILE has lines
    [ "$(cat "$1"/hypotheses.*.jsonl 2>/dev/null | wc -l)" -eq "$(lines_of "$2")" ]
}
teacher_decode() { # teacher_decode SET: n-best of the first teacher
    local set=$1 dir=${decode_dir}/$1 key asked config=() options
    [ -z "${teacher_inference_config}" ] || config=(--inference_config "${teacher_inference_config}")
    # shellcheck disable=SC2206
    options=("${config[@]}" --nbest "${teacher_nbest}" ${teacher_inference_args})
    # Shards know their teacher, not the audio; the mark of the end knows both.
    key=$(key_of "$(tables_of "${set}")")
    asked=$(key_of "${teacher}/config.yaml ${teacher}/${teacher_model} ${options[*]}" "${nj}" "${options[@]}")
    if [ "$(cat "${dir}/.command" "${dir}/.done" 2>/dev/null)" = "${key}"$'\n'"${asked}" ] &&
        holds_all "${dir}" "${data_feats}/${set}/wav.scp"; then # a shard may have been removed
        log "  done before: ${dir}"
        return
    fi
    [ ! -e "${dir}/.command" ] || [ "$(cat "${dir}/.command")" = "${key}" ] ||
        die "${dir} holds hypotheses of other audio: ${data_feats}/${set} was made anew; delete the folder"
    begin "${dir}" "${key}"
    decode_with_teacher "${set}" "${dir}" "${options[@]}"
    end "${dir}" "${asked}"
}
decode_with_teacher() { # decode_with_teacher SET DIR [option...]
    local set=$1 dir=$2 jobs
    jobs=$(jobs_for "${data_feats}/${set}/wav.scp" "${nj}")
    [ ! -e "${dir}/hypotheses.$((jobs + 1)).jsonl" ] ||
        die "${dir} holds the shards of more than ${jobs} jobs: give the same --nj, or delete the folder"
    rm -rf "${dir}/logdir"
    split_keys "${data_feats}/${set}/wav.scp" "${dir}/logdir" "${jobs}"
    ${decode_cmd} --gpu "${inference_ngpu}" JOB=1:"${jobs}" "${dir}"/logdir/decode.JOB.log \
        ${python} -m espnet_kd.bin.teacher_decode --data_dir "${data_feats}/${set}" \
        --key_file "${dir}"/logdir/keys.JOB.scp --ngpu "${inference_ngpu}" \
        --teacher_config "${teacher}/config.yaml" \
        --teacher_model_file "${teacher}/${teacher_model}" \
        --output_file "${dir}"/hypotheses.JOB.jsonl "${@:3}" || fail "teacher decoding" "${dir}"/logdir/decode.*.log
    grep -h ' utterances, ' "${dir}"/logdir/decode.*.log || true # each job's summary
}
decode() { # decode TASK EXP MODEL SET DIR [option...]: stock inference (called by once: dies itself)
    local task=$1 exp=$2 model=$3 set=$4 dir=$5 jobs file part
    shift 5
    jobs=$(jobs_for "${data_feats}/${set}/wav.scp" "${inference_nj}") || exit
    rm -rf "${dir}/logdir" # outputs of more jobs would be joined too
    split_keys "${data_feats}/${set}/wav.scp" "${dir}/logdir" "${jobs}"
    # shellcheck disable=SC2046,SC2086
    ${decode_cmd} --gpu "${inference_ngpu}" JOB=1:"${jobs}" "${dir}"/logdir/decode.JOB.log \
        ${python} -m espnet_kd.shim -m espnet2.bin."${task}"_inference --batch_size "${batch_size}" --ngpu "${inference_ngpu}" \
        --data_path_and_name_and_type $(data_of test "${data_feats}/${set}" | awk 'NR == 1 { print $2 }') \
        --key_file "${dir}"/logdir/keys.JOB.scp --asr_train_config "${exp}"/config.yaml \
        --asr_model_file "${exp}/${model}" --output_dir "${dir}"/logdir/output.JOB "$@" </dev/null ||
        fail decoding "${dir}"/logdir/decode.*.log
    for file in text token score; do
        for part in $(seq "${jobs}"); do cat "${dir}/logdir/output.${part}/1best_recog/${file}" || exit; done |
            LC_ALL=C sort -k1,1 >"${dir}/${file}" || die "${dir}/logdir: an output lacks ${file}"
    done
}
preset_options() { ${python} -m espnet_kd.bin.preset options --kd_config "${kd_config}"; }
read_preset() { # sets the options of kd_set, and of them labelled_targets
    [ -n "${kd_config}" ] && [ -z "${kd_set_options}" ] || return 0
    kd_set_options="$(preset_options) ${kd_set_args}"
    labelled_targets=$(echo "--labelled_targets reference ${kd_set_options}" | sed -E 's/.*--labelled_targets[= ]+([a-z]+).*/\1/')
}
stats() { # stats TASK CONFIG SET STATS_DIR [option...]
    may_write "$4" "$4/train/speech_shape" || return 0
    once "$4" "$(tables_of "$3" "${valid_set}") ${token_list} ${bpemodel}" collect_stats "$1" "$2" "$3" "$4" ${model_options} "${@:5}"
}
join_targets() { # join_targets [option...]: the KD set; its mark lies beside its shapes
    [ -e "${kd_data}/stats.json" ] || begin "${kd_data}_shapes" "no set yet"
    once "${kd_data}_shapes" "$(tables_of "${train_set}") ${token_list} ${bpemodel} $*" ${python} -m espnet_kd.bin.kd_set "$@"
}
configure() { # configure EXP merge|sparse CONFIG PRESET [option...]: EXP/train.yaml
    local exp=$1 key
    key=$(key_of "$*" "${@:2}")
    if is_current "${exp}/train.yaml" "${key}"; then return; fi
    ${python} -m espnet_kd.bin.preset "$2" --asr_config "$3" --kd_config "$4" --output_file "${exp}/train.new.yaml" "${@:5}"
    if [ -e "${exp}/checkpoint.pth" ] && ! cmp -s "${exp}/train.new.yaml" "${exp}/train.yaml"; then
        rm "${exp}/train.new.yaml"
        refuse_other "${exp}"
    fi
    mv "${exp}/train.new.yaml" "${exp}/train.yaml"
    echo "${key}" >"${exp}/.train.yaml"
}
teach() { # sets teaching, the options that name the teachers
    teaching=(--teacher_config "${teachers[@]/%//config.yaml}" --teacher_model_file "${teachers[@]/%//${teacher_model}}")
    # shellcheck disable=SC2206
    [ -z "${teacher_weights}" ] || teaching+=(--teacher_weight ${teacher_weights})
}
systems() { # NAME TASK FOLDER CHECKPOINT of every system: teachers, student, student with KD
    local index
    for index in "${!teachers[@]}"; do
        echo "teacher$([ "${index}" -eq 0 ] || echo "$((index + 1))") $(task_of "${teachers[index]}") ${teachers[index]} ${teacher_model}"
    done
    echo "student ${asr_task} ${asr_exp} ${inference_asr_model}"
    [ -z "${kd_tag}" ] || echo "student+KD ${asr_task} ${kd_exp} ${inference_asr_model}"
    [ -z "${sparse_config}" ] || echo "sparse $(task_of "${teacher}") ${sparse_exp} ${sparse_model:-${teacher_model}}"
}
find_trained() { # sets trained, the systems that have a checkpoint; names those left out
    local name task exp model all
    mapfile -t all < <(systems)
    trained=()
    for system in "${all[@]}"; do
        read -r name task exp model <<<"${system}"
        if [ -e "${exp}/${model}" ]; then
            trained+=("${system}")
        elif [ -e "${exp}/.done" ]; then
            die "${exp} is trained and has no ${model}: give --inference_asr_model (--teacher_model, --sparse_model)"
        else
            log "  ${name} is left out, no ${exp}/${model}"
        fi
    done
}
choose_search() { # choose_search NAME TASK FOLDER CHECKPOINT: sets config, args, tag and results, a folder
    local base=${3%/}
    config=${inference_config} args=${inference_args} tag=${inference_tag}
    if [[ $1 == teacher* && -n ${teacher_inference_config} ]]; then
        config=${teacher_inference_config} args=
    elif [ "$2" != "${asr_task}" ]; then # the student's search has options that it lacks
        config= args=
    fi
    is_here "${base}" || base=$(place_of "$3") # another's folder is not written to
    if [ -z "${tag}" ]; then
        tag=$([ -n "${config}" ] && name_of "${config}" || echo inference)
        tag+=$(echo "${args}" | sed -e 's/--/\_/g' -e 's/[ |=]//g')${lm_name}_asr_model_$(stem_of "$4")
    fi
    results=${base}/${tag}
}
by_asr_sh() { # by_asr_sh STAGE TASK EXP MODEL SETS: decode or score SETS (called by once: dies itself)
    local log=$3/${tag}/asr_stage$1.log sets=" $5 " valid=false
    if [[ ${sets} == *" ${valid_eval_set} "* ]]; then
        sets=${sets/" ${valid_eval_set} "/ } valid=true
    fi
    local own=(--inference_config "${config}" --inference_asr_model "$4" --inference_tag "${tag}")
    [ "${args}" = "${inference_args}" ] || own+=(--inference_args "${args}")
    mkdir -p "${log%/*}"
    # The shim: stock inference of transducers needs a stand-in for warprnnt_pytorch.
    "${asr_sh[@]}" --asr_task "$2" --asr_exp "$3" "${own[@]}" --test_sets "${sets# }" --eval_valid_set "${valid}" \
        --python "${python} -m espnet_kd.shim" --stage "$1" --stop_stage "$1" </dev/null >>"${log}" 2>&1 || fail asr.sh "${log}"
}
scored_text() { # scored_text TEXT CLEANER OUTPUT: prints the file that is scored
    local filter=()
    [ ! -x local/wer_output_filter ] || filter=(--filter local/wer_output_filter)
    if [ "${nlsyms_txt} $2" = "none none" ] && [ ${#filter[@]} -eq 0 ]; then
        echo "$1"
    else
        act ${python} -m espnet_kd.bin.scored_text --text "$1" --cleaner "$2" --nlsyms_txt "${nlsyms_txt}" "${filter[@]}" --output "$3" >&2 || exit
        echo "$3"
    fi
}
find_decoded() { # find_decoded SET: sets options and files of the report on all decoded systems; adds them to scored
    local name task exp model system ref hyp
    names=" " options=() files=()
    for system in "${trained[@]}"; do
        read -r name task exp model <<<"${system}"
        # shellcheck disable=SC2086
        choose_search ${system}
        [ -e "${results}/$1/text" ] || continue
        ref=$(scored_text "${data_feats}/$1/text" "${cleaner}" "${results}/$1/score_wer/ref.txt")
        hyp=$(scored_text "${results}/$1/text" "${hyp_cleaner}" "${results}/$1/score_wer/hyp.txt")
        [ ${#options[@]} -gt 0 ] || options=(--ref "${ref}")
        files+=("${ref}" "${hyp}" "${exp}/${model}")
        names+="${name} "
        options+=(--hyp "${name}" "${hyp}" --model "${name}" "${exp}/${model}")
        scored+=("${name} ${results}/$1 ${ref} ${hyp}")
    done
    [ ${#options[@]} -gt 0 ] || is_wanted 12 || die "nothing is decoded for $1: run stage 12"
}
score_as_asr_sh() { # the recipe's own scoring of every folder, as asr.sh does it
    local name task exp model system folders=" " sets
    sets=$(for set in ${eval_sets}; do [ "${set}" = "${valid_set}" ] || echo -n "${set} "; done)
    for system in "${trained[@]}"; do
        read -r name task exp model <<<"${system}"
        # shellcheck disable=SC2086
        choose_search ${system}
        [[ ${folders} != *" ${results} "* ]] || continue
        folders+="${results} "
        if [ ${#asr_sh[@]} -eq 0 ]; then
            # shellcheck disable=SC2086
            [ ! -x local/score.sh ] || python="${python}" local/score.sh ${local_score_opts} "${results%/*}" </dev/null
        elif [ -z "${sets}" ] || ! is_here "${exp}"; then
            continue # nothing that asr.sh decoded, or it has scored it
        elif command -v sclite >/dev/null; then
            by_asr_sh 13 "${task}" "${exp}" "${model}" "${sets}"
            log "  ${exp}/RESULTS.md"
        else
            log "  ${exp}: sclite is not on PATH, asr.sh's own scoring is left out (Debian: apt install sctk)"
        fi
    done
}
