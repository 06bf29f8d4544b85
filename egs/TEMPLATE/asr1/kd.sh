#!/usr/bin/env bash
# Knowledge distillation for an ESPnet2 ASR recipe: from data to a table of teacher,
# student without KD and student with KD. Run it in the recipe folder.
set -euo pipefail

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') (kd.sh:${BASH_LINENO[0]}) $*"; }
SECONDS=0

# General
stage=1               # First stage to run.
stop_stage=10000      # Last stage to run.
skip_stages=          # Stages to leave out, e.g. "1 2".
ngpu=1                # GPUs for training (0: CPU).
num_nodes=1           # Machines for training.
nj=32                 # Jobs for data, statistics and teacher decoding.
inference_nj=32       # Jobs for decoding the test sets.
gpu_inference=false   # Decode on GPUs.
dumpdir=dump          # Where the formatted data lie.
expdir=exp            # Where the experiments lie.
python=python3        # Python to run.

# Data
local_data_opts=          # Options of local/data.sh.
speed_perturb_factors=    # E.g. "0.9 1.0 1.1": changes the train sets.
feats_type=raw            # Only raw.
fs=16k                    # Sampling rate.
train_set=                # Labelled audio for the student.
valid_set=                # Audio for model selection.
test_sets=                # Audio to decode and score.
teacher_train_set=        # Labelled audio for the teacher (default: train_set).
unlabelled_set=           # Audio without references, for KD.

# Tokens
token_type=bpe        # bpe or char.
nbpe=30               # Number of word pieces.
bpemode=unigram       # unigram or bpe.
lang=noinfo           # Language, part of names.
nlsyms_txt=none       # Non-linguistic symbols.
cleaner=none          # Text cleaner.
g2p=none              # Grapheme to phoneme.
token_list=           # Token list (default: made in stage 3).
bpemodel=             # Word piece model (default: made in stage 3).

# Student
asr_task=asr              # asr or asr_transducer.
asr_config=               # Training configuration.
asr_args=                 # More options of training.
asr_tag=                  # Name of the experiment (default: from asr_config).
asr_exp=                  # Folder of the student without KD.
asr_stats_dir=            # Folder of the statistics.
pretrained_model=         # Start the students from this checkpoint.
feats_normalize=global_mvn # Normalisation of features.
asr_speech_fold_length=800 # Fold length of speech.
asr_text_fold_length=150   # Fold length of text.
ignore_init_mismatch=false # Whether pretrained_model may lack parts.
num_splits_asr=1           # Only 1.

# Teacher
teacher_task=             # asr or asr_transducer (default: told by teacher_exp, else asr_task).
teacher_asr_config=       # Training configuration of stage 5.
teacher_asr_args=         # More options of its training.
teacher_exp=              # Trained teachers, a list (default: made in stage 5).
teacher_model=valid.acc.ave.pth # Checkpoint in each.
teacher_weights=          # Weight of each teacher (default: equal).
teacher_inference_config= # Search of stage 6.
teacher_inference_args=   # More options of espnet_kd.bin.teacher_decode.
teacher_nbest=4           # Hypotheses kept of each utterance.

# Distillation
kd_config=            # Preset or own file, e.g. conf/kd/one_best_path.yaml.
kd_args=              # More training options with KD, e.g. "--kd_conf rate=pool".
kd_tag=               # Name of the KD set and student (default: from kd_config).
kd_set_args=          # More options of espnet_kd.bin.kd_set.

# Decoding and report
inference_config=         # Search.
inference_args=           # More options of decoding.
inference_tag=            # Name of decoding (default: from inference_config).
inference_asr_model=valid.acc.ave.pth # Checkpoint to decode with.
batch_size=1              # Utterances at a time in decoding.

# Options of asr.sh that KD has no use for; taken so that a run.sh line can be pasted.
# shellcheck disable=SC2034
skip_data_prep=false skip_train=false skip_eval=false skip_upload=true skip_upload_hf=true \
    skip_packing=true debug=false audio_format=flac min_wav_duration=0.1 max_wav_duration=20 \
    oov="<unk>" blank="<blank>" sos_eos="<sos/eos>" bpe_input_sentence_size=100000000 \
    bpe_nlsyms="" bpe_char_cover=1.0 hugging_face_model_name_or_path="" use_ngram=false \
    ngram_exp="" ngram_num=3 use_lm=true lm_tag="" lm_exp="" lm_stats_dir="" lm_config="" \
    lm_args="" use_word_lm=false num_splits_lm=1 word_vocab_size=10000 hf_repo="" use_k2=false \
    k2_ctc_decoding=true use_nbest_rescoring=true num_paths=1000 nll_batch_size=100 \
    k2_config=./conf/decode_asr_transformer_with_k2.yaml use_streaming=false \
    use_maskctc=false inference_lm=valid.loss.ave.pth inference_ngram=3gram.bin \
    download_model="" bpe_train_text="" lm_train_text="" lm_dev_text="" lm_test_text="" \
    score_opts="" local_score_opts="" lm_fold_length=150 ref_text_files_str="text " \
    ref_num=1 auxiliary_data_tags="" post_process_local_data_opts="" hyp_cleaner=none \
    use_text_prev=false use_lightning=false

help_message="Usage: $0 --train_set NAME --valid_set NAME --test_sets \"NAMES\" --asr_config FILE --kd_config FILE [options]

$(sed -n '/^# General/,/^help_message/p' "$0" | sed '/^help_message/d')

Stages: 1 data, 2 format and speed perturbation, 3 token list, 4 statistics, 5 teacher
training, 6 teacher check and decoding, 7 soft targets, 8 KD training set, 9 student
without KD, 10 student with KD, 11 sparse student, 12 decoding, 13 scoring, 14 report."

run_args=$(printf '%q ' "$@")
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
if [ ! -e "${here}/utils/run_jobs.py" ]; then # a copy of kd.sh: our files lie with the package
    here=$(python3 -c 'import pathlib, espnet_kd; print(pathlib.Path(espnet_kd.__file__).parents[1])')/egs/TEMPLATE/asr1
fi
# The recipe's own files, ours where it has none.
for file in utils/parse_options.sh path.sh cmd.sh; do
    [ -e "${file}" ] || file=${here}/${file}
    # shellcheck disable=SC1090
    . "${file}"
done
if [ $# -gt 0 ]; then
    echo "$0: positional arguments are not taken: $*" >&2
    exit 2
fi
PATH=${PATH}:${here}/utils

die() { log "Error: $*" >&2; exit 1; }
need() { for name in "$@"; do [ -n "${!name}" ] || die "--${name} is needed (see --help)"; done; }
made_by() { # made_by STAGES FILE...: refuse to go on without a file of an earlier stage
    local stages=$1 file
    shift
    for file in "$@"; do
        [ -e "${file}" ] || die "${file} is not there: run stage ${stages} (of kd.sh or asr.sh) first"
    done
}
runs() { # Whether a stage is asked for; says what it does.
    [ "${stage}" -le "$1" ] && [ "$1" -le "${stop_stage}" ] || return 1
    [[ ! " ${skip_stages} " =~ [[:space:]]$1[[:space:]] ]] || return 1
    log "Stage $1: $2"
}
once() { # once DIR COMMAND...: skip a command that has ended well in DIR before.
    local marker=$1/.done key
    shift
    key="$* $(for word in "$@"; do case ${word} in *.yaml) cksum <"${word}" ;; esac; done)"
    if [ -e "${marker}" ] && [ "$(cat "${marker}")" = "${key}" ]; then
        log "  done before: ${marker%/.done}"
        return 0
    fi
    rm -f "${marker}"
    "$@" || return # set -e does not hold within a condition
    mkdir -p "$(dirname "${marker}")"
    echo "${key}" >"${marker}"
}
name_of() { basename "$1" .yaml; }

# Kaldi's run.pl and the like may be named in cmd.sh and not be installed.
for command in train_cmd cuda_cmd decode_cmd; do
    if ! command -v "${!command%% *}" >/dev/null; then
        log "${command}: ${!command%% *} is not on PATH, jobs run on this machine (run_jobs.py)"
        printf -v "${command}" run_jobs.py
    fi
done

need train_set valid_set test_sets asr_config
[ "${num_splits_asr}" -eq 1 ] || die "--num_splits_asr ${num_splits_asr}: a split KD set is not supported, leave it at 1"
[ "${feats_type}" = raw ] || die "--feats_type ${feats_type}: KD reads waveforms, only raw is taken"
teacher_train_set=${teacher_train_set:-${train_set}}
if [ -n "${speed_perturb_factors}" ]; then
    data_train_sets=$(printf '%s\n' "${train_set}" "${teacher_train_set}" | sort -u)
    train_set=${train_set}_sp
    teacher_train_set=${teacher_train_set}_sp
else
    data_train_sets=
fi

# Names, as asr.sh derives them.
data_feats=${dumpdir}/${feats_type}
_lang=$([ "${lang}" = noinfo ] || echo "${lang}_")
case ${token_type} in
bpe) token_name=bpe_${bpemode}${nbpe} token_tag=bpe${nbpe} ;;
char) token_name=char token_tag=char ;;
*) die "--token_type ${token_type}: bpe or char" ;;
esac
token_dir=data/${_lang}token_list/${token_name}
token_list=${token_list:-${token_dir}/tokens.txt}
if [ "${token_type}" = bpe ]; then bpemodel=${bpemodel:-${token_dir}/bpe.model}; else bpemodel=none; fi
tag_of() { # tag_of CONFIG ARGS
    local tag
    tag="$(name_of "$1")_${feats_type}_${_lang}${token_tag}"
    [ -z "$2" ] || tag+=$(echo "$2" | sed -e 's/--/\_/g' -e 's/[ |=/]//g')
    [ -z "${speed_perturb_factors}" ] || tag+=_sp
    echo "${tag}"
}
stats_tag=${feats_type}_${_lang}${token_tag}
[ -z "${speed_perturb_factors}" ] || stats_tag+=_sp
asr_stats_dir=${asr_stats_dir:-${expdir}/asr_stats_${stats_tag}}
teacher_stats_dir=${asr_stats_dir}
[ "${teacher_train_set}" = "${train_set}" ] || teacher_stats_dir=${asr_stats_dir}_${teacher_train_set}
asr_tag=${asr_tag:-$(tag_of "${asr_config}" "${asr_args}")}
asr_exp=${asr_exp:-${expdir}/asr_${asr_tag}}
if [ -n "${teacher_asr_config}" ]; then
    teacher_exp=${teacher_exp:-${expdir}/asr_$(tag_of "${teacher_asr_config}" "${teacher_asr_args}")}
fi
read -r -a teachers <<<"${teacher_exp}"
if [ -z "${teacher_task}" ]; then
    teacher_task=${asr_task}
    if [ ${#teachers[@]} -gt 0 ] && [ -e "${teachers[0]}/config.yaml" ]; then
        teacher_task=$(grep -q '^joint_network_conf' "${teachers[0]}/config.yaml" && echo asr_transducer || echo asr)
    fi
fi
kd_tag=${kd_tag:-$([ -z "${kd_config}" ] || name_of "${kd_config}")}
kd_data=${data_feats}/${train_set}_kd_${kd_tag}
kd_exp=${asr_exp}_kd_${kd_tag}
decode_dir=${expdir}/teacher_decode/$([ ${#teachers[@]} -eq 0 ] || basename "${teachers[0]}")
if [ -z "${inference_tag}" ]; then
    inference_tag=$([ -n "${inference_config}" ] && name_of "${inference_config}" || echo inference)
    inference_tag+=$(echo "${inference_args}" | sed -e 's/--/\_/g' -e 's/[ |=]//g')
    inference_tag+=_asr_model_${inference_asr_model%.pth}
fi
tokenizing="--token_type ${token_type} --token_list ${token_list} --bpemodel ${bpemodel} --non_linguistic_symbols ${nlsyms_txt} --cleaner ${cleaner} --g2p ${g2p}"

split_keys() { # split_keys FILE DIR JOBS: FILE's lines over DIR/keys.N.scp
    mkdir -p "$2"
    rm -f "$2"/keys.*.scp
    split --numeric-suffixes=1 --suffix-length=4 --number=l/"$3" --additional-suffix=.scp "$1" "$2"/keys.
    local file
    for file in "$2"/keys.*.scp; do # keys.0007.scp -> keys.7.scp
        local number=${file##*/keys.}
        mv "${file}" "$2/keys.$((10#${number%.scp})).scp"
    done
}
jobs_for() { # jobs_for FILE WANTED: no more jobs than utterances
    local lines
    lines=$(wc -l <"$1")
    [ "${lines}" -gt 0 ] || die "$1 is empty"
    echo $((lines < $2 ? lines : $2))
}
collect_stats() { # collect_stats TASK CONFIG SET STATS_DIR (called by once: dies itself)
    local task=$1 config=$2 set=$3 dir=$4 part jobs opts=""
    jobs=$(jobs_for "${data_feats}/${valid_set}/wav.scp" "$(jobs_for "${data_feats}/${set}/wav.scp" "${nj}")")
    split_keys "${data_feats}/${set}/wav.scp" "${dir}/logdir/train" "${jobs}"
    split_keys "${data_feats}/${valid_set}/wav.scp" "${dir}/logdir/valid" "${jobs}"
    # shellcheck disable=SC2086
    ${train_cmd} JOB=1:"${jobs}" "${dir}"/logdir/stats.JOB.log \
        ${python} -m espnet_kd.bin."${task}"_train --collect_stats true --use_preprocessor true \
        ${tokenizing} --config "${config}" --frontend_conf fs="${fs}" \
        --train_data_path_and_name_and_type "${data_feats}/${set}/wav.scp,speech,sound" \
        --train_data_path_and_name_and_type "${data_feats}/${set}/text,text,text" \
        --valid_data_path_and_name_and_type "${data_feats}/${valid_set}/wav.scp,speech,sound" \
        --valid_data_path_and_name_and_type "${data_feats}/${valid_set}/text,text,text" \
        --train_shape_file "${dir}"/logdir/train/keys.JOB.scp \
        --valid_shape_file "${dir}"/logdir/valid/keys.JOB.scp \
        --output_dir "${dir}"/logdir/stats.JOB || die "statistics failed, see ${dir}/logdir/stats.*.log"
    for part in $(seq "${jobs}"); do opts+="--input_dir ${dir}/logdir/stats.${part} "; done
    # shellcheck disable=SC2086
    ${python} -m espnet2.bin.aggregate_stats_dirs ${opts} --output_dir "${dir}" ||
        die "${dir}: the parts in logdir could not be joined"
    local tokens
    tokens=$(wc -l <"${token_list}")
    for part in train valid; do
        awk -v n="${tokens}" '{ print $0 "," n }' "${dir}/${part}/text_shape" >"${dir}/${part}/text_shape.${token_type}"
    done
}
train() { # train TASK CONFIG DATA SHAPES STATS EXP [option...]
    local task=$1 config=$2 data=$3 shapes=$4 stats=$5 exp=$6 weights=()
    shift 6
    made_by "2 or 8" "${data}/wav.scp" "${data_feats}/${valid_set}/wav.scp"
    made_by 3 "${token_list}"
    made_by "4 or 8" "${shapes}/speech_shape" "${shapes}/text_shape.${token_type}" "${stats}/valid/speech_shape"
    [ ! -e "${data}/kd_weight" ] || weights=(--train_data_path_and_name_and_type "${data}/kd_weight,kd_weight,text_float")
    local normalize=()
    [ "${feats_normalize}" != global_mvn ] || normalize=(--normalize global_mvn --normalize_conf stats_file="${stats}/train/feats_stats.npz")
    local start=()
    [ -z "${pretrained_model}" ] || start=(--init_param "${pretrained_model}" --ignore_init_mismatch "${ignore_init_mismatch}")
    mkdir -p "${exp}"
    # shellcheck disable=SC2086
    once "${exp}" ${python} -m espnet2.bin.launch --cmd "${cuda_cmd} --name ${exp}/train.log" \
        --log "${exp}"/train.log --ngpu "${ngpu}" --num_nodes "${num_nodes}" \
        --init_file_prefix "${exp}"/.dist_init_ --multiprocessing_distributed true -- \
        ${python} -m espnet_kd.bin."${task}"_train --use_preprocessor true ${tokenizing} \
        --train_data_path_and_name_and_type "${data}/wav.scp,speech,sound" \
        --train_data_path_and_name_and_type "${data}/text,text,text" "${weights[@]}" \
        --train_shape_file "${shapes}/speech_shape" \
        --train_shape_file "${shapes}/text_shape.${token_type}" \
        --valid_data_path_and_name_and_type "${data_feats}/${valid_set}/wav.scp,speech,sound" \
        --valid_data_path_and_name_and_type "${data_feats}/${valid_set}/text,text,text" \
        --valid_shape_file "${stats}/valid/speech_shape" \
        --valid_shape_file "${stats}/valid/text_shape.${token_type}" \
        --fold_length $((asr_speech_fold_length * 100)) --fold_length "${asr_text_fold_length}" \
        --config "${config}" --frontend_conf fs="${fs}" "${normalize[@]}" "${start[@]}" \
        --resume true --output_dir "${exp}" "$@" \
        || die "training failed, see ${exp}/train.log"
}
teacher_decode() { # teacher_decode SET: n-best of the first teacher
    local set=$1 dir=${decode_dir}/$1 jobs config=()
    made_by 2 "${data_feats}/${set}/wav.scp"
    made_by 5 "${teachers[0]}/config.yaml" "${teachers[0]}/${teacher_model}"
    jobs=$(jobs_for "${data_feats}/${set}/wav.scp" "${nj}")
    split_keys "${data_feats}/${set}/wav.scp" "${dir}/logdir" "${jobs}"
    [ ! -e "${dir}/hypotheses.$((jobs + 1)).jsonl" ] ||
        die "${dir} holds the shards of more than ${jobs} jobs: give the same --nj, or delete the folder"
    [ -z "${teacher_inference_config}" ] || config=(--inference_config "${teacher_inference_config}")
    # shellcheck disable=SC2086
    ${decode_cmd} --gpu "${inference_ngpu}" JOB=1:"${jobs}" "${dir}"/logdir/decode.JOB.log \
        ${python} -m espnet_kd.bin.teacher_decode --data_dir "${data_feats}/${set}" \
        --key_file "${dir}"/logdir/keys.JOB.scp --ngpu "${inference_ngpu}" \
        --teacher_config "${teachers[0]}/config.yaml" \
        --teacher_model_file "${teachers[0]}/${teacher_model}" "${config[@]}" \
        --nbest "${teacher_nbest}" --output_file "${dir}"/hypotheses.JOB.jsonl ${teacher_inference_args}
    grep -h ' utterances, ' "${dir}"/logdir/decode.*.log || true # each job's summary
}
decode() { # decode TASK EXP: stock inference of every test set
    local task=$1 exp=$2 set dir jobs config=()
    [ -z "${inference_config}" ] || config=(--config "${inference_config}")
    for set in ${test_sets}; do
        dir=${exp}/${inference_tag}/${set}
        jobs=$(jobs_for "${data_feats}/${set}/wav.scp" "${inference_nj}")
        split_keys "${data_feats}/${set}/wav.scp" "${dir}/logdir" "${jobs}"
        # shellcheck disable=SC2086
        once "${dir}" ${decode_cmd} --gpu "${inference_ngpu}" JOB=1:"${jobs}" "${dir}"/logdir/decode.JOB.log \
            ${python} -m espnet_kd.shim -m espnet2.bin."${task}"_inference --batch_size "${batch_size}" --ngpu "${inference_ngpu}" \
            --data_path_and_name_and_type "${data_feats}/${set}/wav.scp,speech,sound" \
            --key_file "${dir}"/logdir/keys.JOB.scp --asr_train_config "${exp}"/config.yaml \
            --asr_model_file "${exp}/${inference_asr_model}" \
            --output_dir "${dir}"/logdir/output.JOB "${config[@]}" ${inference_args}
        for file in text token score; do
            cat "${dir}"/logdir/output.*/1best_recog/"${file}" | LC_ALL=C sort -k1,1 >"${dir}/${file}"
        done
    done
}
inference_ngpu=$([ "${gpu_inference}" = true ] && echo 1 || echo 0)
needs_teacher() { [ ${#teachers[@]} -gt 0 ] || die "--teacher_exp (trained) or --teacher_asr_config (stage 5) is needed"; }

if runs 1 "data preparation: local/data.sh -> data/"; then
    # shellcheck disable=SC2086
    python="${python}" local/data.sh ${local_data_opts}
fi

all_sets=$(printf '%s\n' "${train_set}" "${teacher_train_set}" ${unlabelled_set} "${valid_set}" ${test_sets} | sort -u)
if runs 2 "format and speed perturbation: data/ -> ${data_feats}"; then
    for set in ${all_sets}; do
        factors=()
        source=data/${set}
        for base in ${data_train_sets}; do
            if [ "${set}" = "${base}_sp" ]; then
                # shellcheck disable=SC2206
                factors=(--speed_perturb_factors ${speed_perturb_factors})
                source=data/${base}
            fi
        done
        once "${data_feats}/${set}" ${python} -m espnet_kd.bin.format_data --data_dir "${source}" \
            --output_dir "${data_feats}/${set}" --fs "${fs}" "${factors[@]}"
    done
fi

if runs 3 "token list from ${data_feats}/${teacher_train_set}/text -> ${token_list}"; then
    once "${token_dir}" ${python} -m espnet_kd.bin.token_list --text "${data_feats}/${teacher_train_set}/text" \
        --token_type "${token_type}" --nbpe "${nbpe}" --bpemode "${bpemode}" \
        --nlsyms_txt "${nlsyms_txt}" --cleaner "${cleaner}" --output_dir "${token_dir}"
fi

if runs 4 "statistics -> ${teacher_stats_dir} ${asr_stats_dir}"; then
    once "${asr_stats_dir}" collect_stats "${asr_task}" "${asr_config}" "${train_set}" "${asr_stats_dir}"
    if [ "${teacher_stats_dir}" != "${asr_stats_dir}" ]; then
        once "${teacher_stats_dir}" collect_stats "${teacher_task}" "${teacher_asr_config:-${asr_config}}" "${teacher_train_set}" "${teacher_stats_dir}"
    fi
fi

if runs 5 "teacher training on ${teacher_train_set} -> ${teacher_exp}"; then
    need teacher_asr_config
    # shellcheck disable=SC2086
    train "${teacher_task}" "${teacher_asr_config}" "${data_feats}/${teacher_train_set}" \
        "${teacher_stats_dir}/train" "${teacher_stats_dir}" "${teachers[0]}" ${teacher_asr_args}
fi

if runs 6 "teacher check on ${valid_set}, decoding of ${train_set} ${unlabelled_set} -> ${decode_dir}"; then
    needs_teacher
    for set in ${valid_set} ${train_set} ${unlabelled_set}; do
        log "  ${set} -> ${decode_dir}/${set}"
        teacher_decode "${set}"
    done
fi

if runs 7 "soft targets: none are stored, teachers speak during stage 10 (stored targets are not there yet)"; then :; fi

if runs 8 "KD training set from ${decode_dir} -> ${kd_data}"; then
    needs_teacher
    need kd_config
    unlabelled=()
    [ -z "${unlabelled_set}" ] || unlabelled=(--unlabelled "${decode_dir}/${unlabelled_set}"/hypotheses.*.jsonl)
    made_by 6 "${decode_dir}/${train_set}"/hypotheses.*.jsonl
    preset=$(${python} -m espnet_kd.bin.preset options --kd_config "${kd_config}")
    # shellcheck disable=SC2086
    ${python} -m espnet_kd.bin.kd_set --labelled "${decode_dir}/${train_set}"/hypotheses.*.jsonl "${unlabelled[@]}" \
        ${preset} ${kd_set_args} ${tokenizing} --output_dir "${kd_data}" --shape_dir "${kd_data}_shapes"
fi

if runs 9 "student without KD on ${train_set} -> ${asr_exp}"; then
    # shellcheck disable=SC2086
    train "${asr_task}" "${asr_config}" "${data_feats}/${train_set}" \
        "${asr_stats_dir}/train" "${asr_stats_dir}" "${asr_exp}" ${asr_args}
fi

if runs 10 "student with KD on ${kd_data} -> ${kd_exp}"; then
    needs_teacher
    need kd_config
    mkdir -p "${kd_exp}"
    ${python} -m espnet_kd.bin.preset merge --asr_config "${asr_config}" --kd_config "${kd_config}" --output_file "${kd_exp}/train.yaml"
    weights=()
    # shellcheck disable=SC2206
    [ -z "${teacher_weights}" ] || weights=(--teacher_weight ${teacher_weights})
    # shellcheck disable=SC2086
    train "${asr_task}" "${kd_exp}/train.yaml" "${kd_data}" "${kd_data}_shapes" "${asr_stats_dir}" "${kd_exp}" \
        --teacher_config "${teachers[@]/%//config.yaml}" \
        --teacher_model_file "${teachers[@]/%//${teacher_model}}" "${weights[@]}" ${asr_args} ${kd_args}
fi

if runs 11 "sparse student: gradual pruning is not there yet"; then :; fi

systems() { # NAME TASK FOLDER of every system: teachers, student, student with KD
    local index
    for index in "${!teachers[@]}"; do
        echo "teacher$([ "${index}" -eq 0 ] || echo "$((index + 1))") ${teacher_task} ${teachers[index]}"
    done
    echo "student ${asr_task} ${asr_exp}"
    [ -z "${kd_tag}" ] || echo "student+KD ${asr_task} ${kd_exp}"
}
trained() { # The systems that have a checkpoint; names those left out.
    local name task exp
    systems | while read -r name task exp; do
        if [ -e "${exp}/${inference_asr_model}" ]; then
            echo "${name} ${task} ${exp}"
        else
            log "  left out, no ${exp}/${inference_asr_model}" >&2
        fi
    done
}
decoded() { # decoded SET: NAME and folder of the systems whose SET is decoded
    local name task exp
    trained 2>/dev/null | while read -r name task exp; do
        [ ! -e "${exp}/${inference_tag}/$1/text" ] || echo "${name} ${exp}"
    done
}
if runs 12 "decoding of ${test_sets} with stock ESPnet inference"; then
    while read -r name task exp; do
        log "  ${name} -> ${exp}/${inference_tag}"
        decode "${task}" "${exp}"
    done < <(trained)
fi

if runs 13 "scoring -> <system>/${inference_tag}/<set>/score_wer/result.md"; then
    for set in ${test_sets}; do
        while read -r name exp; do
            dir=${exp}/${inference_tag}/${set}
            ${python} -m espnet_kd.bin.report --ref "${data_feats}/${set}/text" \
                --hyp "${name}" "${dir}/text" --output "${dir}/score_wer/result.md" >/dev/null
            log "  ${dir}/score_wer/result.md"
        done < <(decoded "${set}")
    done
fi

if runs 14 "report -> ${kd_exp}/report_<set>.md"; then
    for set in ${test_sets}; do
        options=()
        names=" "
        while read -r name exp; do
            names+="${name} "
            options+=(--hyp "${name}" "${exp}/${inference_tag}/${set}/text" --model "${name}" "${exp}/${inference_asr_model}")
        done < <(decoded "${set}")
        [ ${#options[@]} -gt 0 ] || die "nothing is decoded for ${set}: run stage 12"
        [[ ${names} != *" teacher "* ]] || options+=(--teacher teacher)
        [[ ${names} != *" student "* ]] || options+=(--baseline student)
        ${python} -m espnet_kd.bin.report --ref "${data_feats}/${set}/text" "${options[@]}" --output "${kd_exp}/report_${set}.md"
    done
fi
log "Done in ${SECONDS} seconds: $0 ${run_args}"
