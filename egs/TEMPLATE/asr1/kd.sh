#!/usr/bin/env bash
# Knowledge distillation for an ESPnet2 ASR recipe: from data to a table of teacher,
# student without KD and student with KD. Run it in the recipe folder.
set -euo pipefail
SECONDS=0

# General
stage=1               # First stage to run.
stop_stage=10000      # Last stage to run.
skip_stages=          # Stages to leave out, e.g. "1 2".
dry_run=false         # Look for faults, show what each stage would do, write nothing.
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
feats_type=raw            # raw or raw_copy.
fs=16k                    # Sampling rate.
train_set=                # Labelled audio for the student.
valid_set=                # Audio for model selection.
test_sets=                # Audio to decode and score.
teacher_train_set=        # Labelled audio for the teacher (default: train_set).
unlabelled_set=           # Audio without references, for KD.

# Tokens
token_type=bpe        # bpe, char or word.
nbpe=30               # Number of word pieces.
bpemode=unigram       # unigram or bpe.
lang=noinfo           # Language, part of names.
nlsyms_txt=none       # Non-linguistic symbols.
cleaner=none          # Text cleaner.
hyp_cleaner=none      # Text cleaner of hypotheses, before they are scored.
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
pretrained_model=         # Start the students (not the teacher) from this checkpoint.
feats_normalize=global_mvn # Normalisation of features.
asr_speech_fold_length=800 # Fold length of speech.
asr_text_fold_length=150   # Fold length of text.
ignore_init_mismatch=false # Whether pretrained_model may lack parts.
num_splits_asr=1           # Parts of the training set that are read one after the other.

# Teacher
teacher_task=             # Task of stage 5 (default: asr_task); trained teachers tell theirs.
teacher_asr_config=       # Training configuration of stage 5.
teacher_asr_args=         # More options of its training.
teacher_exp=              # Trained teachers, a list (default: made in stage 5).
teacher_model=valid.acc.ave.pth # Checkpoint in each.
teacher_weights=          # Weight of each teacher (default: equal).
teacher_inference_config= # Search of stage 6, and of teachers in stage 12.
teacher_inference_args=   # More options of espnet_kd.bin.teacher_decode.
teacher_nbest=4           # Hypotheses kept of each utterance.

# Distillation
kd_config=            # Preset or own file, e.g. conf/kd/one_best_path.yaml.
kd_args=              # More training options with KD, e.g. "--kd_conf rate=pool".
kd_tag=               # Name of the KD set and student (default: from kd_config).
kd_set_args=          # More options of espnet_kd.bin.kd_set.

# Sparse student
sparse_config=        # Preset or own file, e.g. conf/kd/sparse.yaml (default: none is made).
sparse_args=          # More training options, e.g. "--kd_conf pruning.sparsity=0.6".
sparse_tag=           # Part of its name (default: from sparse_config and sparse_args).
sparse_exp=           # Its folder (default: named after the teacher and sparse_tag).
sparse_model=         # Checkpoint to decode it with (default: teacher_model).

# Decoding and report
inference_config=         # Search.
inference_args=           # More options of decoding.
inference_tag=            # Name of decoding (default: from inference_config).
inference_asr_model=valid.acc.ave.pth # Checkpoint to decode with.
batch_size=1              # Utterances at a time in decoding.
local_score_opts=         # Options of local/score.sh, which stage 13 calls where there is one.
eval_valid_set=false      # Decode and score the valid set too.
use_lm=true               # Decode with the language model of lm_exp.
lm_exp=                   # Its folder (default: as asr.sh names it).
inference_lm=valid.loss.ave.pth # Its checkpoint.
use_ngram=false           # Decode with the n-gram model of ngram_exp.
ngram_exp=                # Its folder (default: as asr.sh names it).
inference_ngram=3gram.bin # Its file.

# asr.sh's other options are taken so that a run.sh line can be pasted. These would change
# results there; where one is given, a line in the log says that it is not used here.
declare -A unused=(
    [use_lightning]=false [audio_format]=flac [min_wav_duration]=0.1
    [max_wav_duration]=20 [oov]="<unk>" [blank]="<blank>" [sos_eos]="<sos/eos>"
    [bpe_input_sentence_size]=100000000 [bpe_nlsyms]="" [bpe_char_cover]=1.0
    [hugging_face_model_name_or_path]=""
    [download_model]="" [bpe_train_text]=""
    [auxiliary_data_tags]="" [post_process_local_data_opts]="" [use_text_prev]=false
)
for option in "${!unused[@]}"; do printf -v "${option}" '%s' "${unused[${option}]}"; done
# KD cannot do these: refused where they are true.
refused="use_word_lm use_k2 use_streaming use_maskctc use_prompt use_lang_prompt use_nlp_prompt sot_asr
    multi_columns_input_wav_scp multi_columns_output_wav_scp"
for option in ${refused}; do printf -v "${option}" false; done
# And these change nothing here but names (lm_*), or only what the recipe's own asr.sh does.
# shellcheck disable=SC2034
skip_data_prep=false skip_train=false skip_eval=false skip_upload=true skip_upload_hf=true \
    skip_packing=true debug=false hf_repo="" ngram_num=3 \
    lm_tag="" lm_stats_dir="" lm_config="" lm_args="" lm_fold_length=150 num_splits_lm=1 \
    word_vocab_size=10000 lm_train_text="" lm_dev_text="" \
    lm_test_text="" k2_ctc_decoding=true use_nbest_rescoring=true num_paths=1000 \
    nll_batch_size=100 k2_config=./conf/decode_asr_transformer_with_k2.yaml score_opts="" \
    ref_text_files_str="text " ref_num=1 num_ref=1 num_inf=""

help_message="Usage: $0 --train_set NAME --valid_set NAME --test_sets \"NAMES\" --asr_config FILE --kd_config FILE [options]

$(sed -n '/^# General/,/^# asr.sh.s other/p' "$0" | sed '$d')

Stages: 1 data, 2 format and speed perturbation, 3 token list, 4 statistics, 5 teacher
training, 6 teacher check and decoding, 7 soft targets, 8 KD training set, 9 student
without KD, 10 student with KD, 11 sparse student, 12 decoding, 13 scoring, 14 report.

asr.sh's other options are taken as well."

# kd.sh works in a process group of its own, so that a signal ends all that it started.
if [ -z "${KD_SH_JOB:-}" ]; then
    stop() { # stop CODE
        trap '' INT TERM HUP
        local group=${!:-}
        [ -n "${group}" ] || exit "$1" # nothing is started
        kill -TERM -- "-${group}" 2>/dev/null || true
        for _ in {1..50}; do
            kill -0 -- "-${group}" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-${group}" 2>/dev/null || true
        echo "$(date '+%Y-%m-%dT%H:%M:%S') (kd.sh) stopped; the same command goes on" >&2
        exit "$1"
    }
    trap 'stop 130' INT
    trap 'stop 143' TERM
    trap 'stop 129' HUP
    set -m
    KD_SH_JOB=1 bash "$0" "$@" </dev/null &
    set +m
    wait $! && exit || exit $?
fi
unset KD_SH_JOB

run_args=$(printf '%q ' "$@")
for ((i = 1; i < $#; i++)); do # needed before the options are parsed
    [ "${!i}" != --python ] || { value=$((i + 1)) && python=${!value}; }
done
# The recipe's own path.sh, utils/parse_options.sh and cmd.sh; ours where it has none.
words=("$@")
set -- # a sourced path.sh sees the positional parameters
# shellcheck disable=SC1091
[ ! -e path.sh ] || . ./path.sh
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
if [ ! -e "${here}/utils/run_jobs.py" ]; then # a copy of kd.sh: our files lie with the package
    here=$(${python} -c 'import pathlib, espnet_kd; print(pathlib.Path(espnet_kd.__file__).parent / "shipped" / "asr1")')
fi
# shellcheck disable=SC1091
[ -e path.sh ] || . "${here}/path.sh"
# shellcheck source=utils/kd_functions.sh
. "${here}/utils/kd_functions.sh"
set -- "${words[@]}"
for file in utils/parse_options.sh cmd.sh; do
    if [ -e "${file}" ]; then file=./${file}; else file=${here}/${file}; fi
    # shellcheck disable=SC1090
    . "${file}"
done
if [ $# -gt 0 ]; then
    echo "$0: positional arguments are not taken: $*" >&2
    exit 2
fi
PATH=${PATH}:${here}/utils:/usr/lib/sctk/bin # where Debian puts sclite
# The recipe's own asr.sh decodes and scores, with those of this line's options that it has.
asr_sh=()
if [ -x asr.sh ]; then
    asr_sh=(./asr.sh)
    theirs=" $(sed -n '/parse_options\.sh/q; s/^\([a-z0-9_]*\)=.*/\1/p' asr.sh | tr '\n' ' ')"
    for ((i = 0; i < ${#words[@]}; i += 2)); do
        option=${words[i]#--}
        option=${option//-/_}
        [[ " stage stop_stage skip_stages download_model " != *" ${option} "* ]] || continue
        [[ ${theirs} != *" ${option} "* ]] || asr_sh+=("${words[@]:i:2}")
    done
fi

# Kaldi's run.pl and the like may be named in cmd.sh and not be installed.
for command in train_cmd cuda_cmd decode_cmd; do
    if ! command -v "${!command%% *}" >/dev/null; then
        log "${command}: ${!command%% *} is not on PATH, jobs run on this machine (run_jobs.py)"
        printf -v "${command}" run_jobs.py
    fi
done

# Faults are gathered: all are told before the first stage.
need train_set valid_set test_sets asr_config
last_stage=14
if ! [[ ${stage} =~ ^[0-9]+$ && ${stop_stage} =~ ^[0-9]+$ ]]; then
    die "--stage ${stage}, --stop_stage ${stop_stage}: must be numbers of stages, 1 to ${last_stage} (see --help)"
elif [ "${stage}" -gt ${last_stage} ]; then
    fault "--stage ${stage}: no such stage; there are 1 to ${last_stage} (see --help)"
elif [ "${stop_stage}" -lt 1 ] || [ "${stop_stage}" -lt "${stage}" ]; then
    fault "--stop_stage ${stop_stage}: before --stage ${stage}, so that no stage would run; there are 1 to ${last_stage} (see --help)"
fi
for number in ${skip_stages}; do
    [[ ${number} =~ ^([1-9]|1[0-4])$ ]] || fault "--skip_stages: ${number} is no stage; there are 1 to ${last_stage} (see --help)"
done
for option in ngpu num_nodes nj inference_nj num_splits_asr; do
    [[ ${!option} =~ ^[1-9][0-9]*$ || "${option} ${!option}" = "ngpu 0" ]] && continue
    fault "--${option} ${!option}: must be a whole number above 0 (--ngpu 0: train on the CPU)"
    printf -v "${option}" 1 # the search for faults goes on
done
[[ ${dry_run} =~ ^(true|false)$ ]] || fault "--dry_run ${dry_run}: must be true or false"
[[ ${asr_task} =~ ^asr(_transducer)?$ ]] || fault "--asr_task ${asr_task}: must be asr or asr_transducer"
[[ ${teacher_task} =~ ^(|asr|asr_transducer)$ ]] || fault "--teacher_task ${teacher_task}: must be asr or asr_transducer"
[[ ${num_nodes} -eq 1 || ! ${cuda_cmd} =~ ^(.*/)?(run_jobs.py|run.pl) ]] ||
    fault "--num_nodes ${num_nodes}: ${cuda_cmd%% *} starts jobs on this machine alone; set cuda_cmd in cmd.sh to slurm.pl, or leave it at 1"
[ "${num_ref}" -eq 1 ] || fault "--num_ref ${num_ref}: KD knows one reference, leave it at 1"
# As asr.sh asks for it, which would say so in stage 12.
[ "${valid_set}" != "${train_set}" ] || fault "--valid_set ${valid_set}: is the --train_set too; they must be different sets"
[[ " ${test_sets} " != *" ${train_set} "* ]] || fault "--test_sets ${test_sets}: ${train_set} is the --train_set; they must be different sets"
[[ ${feats_type} =~ ^raw(_copy)?$ ]] || fault "--feats_type ${feats_type}: KD reads waveforms, only raw and raw_copy are taken"
for option in ${refused}; do
    [ "${!option}" = false ] || fault "--${option} ${!option}: KD has no such training or decoding, leave it at false"
done
for option in "${!unused[@]}"; do
    [ "${!option}" = "${unused[${option}]}" ] || log "--${option} ${!option}: not used by kd.sh"
done
[ "${skip_data_prep}" = false ] || skip_stages+=" 1 2 3 4"
[ "${skip_train}" = false ] || skip_stages+=" 5 6 7 8 9 10 11"
[ "${skip_eval}" = false ] || skip_stages+=" 12 13 14"
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
*)
    token_name=${token_type} token_tag=${token_type}
    [[ ${token_type} =~ ^(char|word)$ ]] || fault "--token_type ${token_type}: must be bpe, char or word (tokens of Whisper and Hugging Face are not supported)"
    ;;
esac
token_dir=data/${_lang}token_list/${token_name}
token_list=${token_list:-${token_dir}/tokens.txt}
if [ "${token_type}" = bpe ]; then bpemodel=${bpemodel:-${token_dir}/bpe.model}; else bpemodel=none; fi
stats_tag=${feats_type}_${_lang}${token_tag}
[ -z "${speed_perturb_factors}" ] || stats_tag+=_sp
asr_stats_dir=${asr_stats_dir:-${expdir}/asr_stats_${stats_tag}}
asr_tag=${asr_tag:-$(tag_of "${asr_config}" "${asr_args}")}
asr_exp=${asr_exp:-${expdir}/asr_${asr_tag}}
teacher_stats_dir=${asr_stats_dir}
if [ -n "${teacher_asr_config}" ]; then
    teacher_exp=${teacher_exp:-${expdir}/asr_$(tag_of "${teacher_asr_config}" "${teacher_asr_args}")}
    # The student's statistics serve where the teacher hears the same in the same way.
    [ "${teacher_train_set} ${teacher_asr_args} $(frontend_of "${teacher_asr_config}")" = \
        "${train_set} ${asr_args} $(frontend_of "${asr_config}")" ] ||
        teacher_stats_dir=${asr_stats_dir}_${teacher_train_set}
elif [ -n "${sparse_config}" ] && [ "${teacher_train_set}" != "${train_set}" ]; then
    teacher_stats_dir=${asr_stats_dir}_${teacher_train_set}
fi
read -r -a teachers <<<"${teacher_exp}"
teacher=${teachers[0]:-} # decodes, and is made sparse
kd_tag=${kd_tag:-$([ -z "${kd_config}" ] || name_of "${kd_config}")}
kd_data=${data_feats}/${train_set}_kd_${kd_tag}
kd_exp=${asr_exp}_kd_${kd_tag}
if [ -n "${sparse_config}" ]; then
    sparse_tag=${sparse_tag:-$(name_of "${sparse_config}")$(tag_of_args "${sparse_args}")}
    sparse_exp=${sparse_exp:-${expdir}/$(basename "${teacher}")_${sparse_tag}}
fi
[[ " ${teachers[*]%/} " != *" ${asr_exp%/} "* ]] || [ ! -e "${asr_exp}/config.yaml" ] || is_ours "${asr_exp}" ||
    fault "${asr_exp} is the teacher's folder: name the student's by --asr_config, --asr_tag or --asr_exp"
for folder in "${asr_exp}" "${kd_exp}" "${sparse_exp}" "${teachers[@]}"; do
    name=$(basename "${folder}")
    [ ${#name} -le 255 ] || fault "${name} is too long a name: give --asr_tag, --kd_tag, --sparse_tag or --teacher_exp"
done
decode_dir=$(place_of "${teacher}")
if [ -z "${lm_exp}" ]; then
    [ -n "${lm_tag}" ] || lm_tag=$([ -n "${lm_config}" ] && name_of "${lm_config}" || echo train)_${_lang}${token_tag}$(tag_of_args "${lm_args}")
    lm_exp=${expdir}/lm_${lm_tag}
fi
ngram_exp=${ngram_exp:-${expdir}/ngram}
# A lack is told before the trainings.
if is_wanted 12 || is_wanted 13 || is_wanted 14; then choose_lm; fi
# The valid set is decoded as it was before asr.sh removed long and short utterances.
valid_eval_set=${valid_set}
[ ! -d "${data_feats}/org/${valid_set}" ] || valid_eval_set=org/${valid_set}
[[ " ${test_sets} " != *" ${valid_set} "* ]] || eval_valid_set=true
eval_sets=$(printf '%s\n' ${test_sets} | awk -v valid="${valid_set}" '$0 != valid && !known[$0]++')
[ "${eval_valid_set}" = false ] || eval_sets="${valid_eval_set} ${eval_sets}"
eval_sets=${eval_sets//$'\n'/ }
inference_ngpu=0
if [ "${gpu_inference}" = true ]; then
    inference_ngpu=1
    decode_cmd=${cuda_cmd}
fi
tokenizing="--token_type ${token_type} --token_list ${token_list} --bpemodel ${bpemodel} --non_linguistic_symbols ${nlsyms_txt} --cleaner ${cleaner} --g2p ${g2p}"
model_options="--use_preprocessor true ${tokenizing} --frontend_conf fs=${fs}"
all_sets=$(printf '%s\n' "${train_set}" "${teacher_train_set}" ${unlabelled_set} "${valid_set}" ${test_sets} | sort -u)
report_dir=${asr_exp}
[ -z "${kd_tag}" ] || report_dir=${kd_exp}
[ -z "${sparse_config}" ] || report_dir=${sparse_exp}
kd_set_options= labelled_targets=both # without a preset all audio is decoded

# What espnet_kd.bin.check looks at; its fields are described in espnet_kd/planning/chain.py.
wanted=$(for number in $(seq ${last_stage}); do ! is_wanted "${number}" || echo -n "${number} "; done)
resolved="wanted data_feats train_set teacher_train_set data_train_sets valid_set unlabelled_set all_sets eval_sets
    fs token_type token_dir token_list bpemodel nlsyms_txt nbpe asr_task asr_config asr_args asr_exp asr_stats_dir feats_normalize
    pretrained_model teacher_task teacher_asr_config teacher_asr_args teacher_exp teacher_model teacher_weights
    teacher_stats_dir teacher_inference_config teacher_inference_args teacher_nbest decode_dir kd_config kd_args kd_tag
    kd_set_args kd_data kd_exp sparse_config sparse_args sparse_exp sparse_model inference_config
    inference_asr_model lm_exp inference_lm use_lm use_ngram ngram_exp inference_ngram
    ngpu num_splits_asr nj gpu_inference speed_perturb_factors"
if [ "${dry_run}" = true ]; then
    # shellcheck source=utils/kd_dry_run.sh
    . "${here}/utils/kd_dry_run.sh" # the stages look, and do nothing
else
    check
fi

if runs 1 "data preparation: local/data.sh -> data/"; then
    # shellcheck disable=SC2086
    act env python="${python}" local/data.sh ${local_data_opts}
fi

if runs 2 "format and speed perturbation: data/ -> ${data_feats}"; then
    for set in ${all_sets}; do
        may_write "${data_feats}/${set}" "${data_feats}/${set}/wav.scp" || continue
        factors=()
        source=data/${set}
        for base in ${data_train_sets}; do
            if [ "${set}" = "${base}_sp" ]; then
                # shellcheck disable=SC2206
                factors=(--speed_perturb_factors ${speed_perturb_factors})
                source=data/${base}
            fi
        done
        once "${data_feats}/${set}" "${source}/*" ${python} -m espnet_kd.bin.format_data --data_dir "${source}" \
            --output_dir "${data_feats}/${set}" --fs "${fs}" "${factors[@]}"
    done
fi

if runs 3 "token list from ${data_feats}/${teacher_train_set}/text -> ${token_list}"; then
    if may_write "${token_dir}" "${token_list}"; then
        once "${token_dir}" "${data_feats}/${teacher_train_set}/text ${nlsyms_txt}" \
            ${python} -m espnet_kd.bin.token_list --text "${data_feats}/${teacher_train_set}/text" \
            --token_type "${token_type}" --nbpe "${nbpe}" --bpemode "${bpemode}" \
            --nlsyms_txt "${nlsyms_txt}" --cleaner "${cleaner}" --output_dir "${token_dir}"
    fi
fi

# shellcheck disable=SC2086
if runs 4 "statistics -> ${asr_stats_dir} ${teacher_stats_dir}"; then
    stats "${asr_task}" "${asr_config}" "${train_set}" "${asr_stats_dir}" ${asr_args}
    if [ "${teacher_stats_dir}" != "${asr_stats_dir}" ]; then
        # Of a trained teacher only the lengths of audio and text are needed, in stage 11.
        if [ -n "${teacher_asr_config}" ]; then
            stats "$(task_of "${teacher}")" "${teacher_asr_config}" "${teacher_train_set}" "${teacher_stats_dir}" ${teacher_asr_args}
        else
            stats "${asr_task}" "${asr_config}" "${teacher_train_set}" "${teacher_stats_dir}" ${asr_args}
        fi
    fi
fi

if runs 5 "teacher training on ${teacher_train_set} -> ${teacher_exp}"; then
    # shellcheck disable=SC2086
    train "$(task_of "${teacher}")" "${teacher_asr_config}" "${data_feats}/${teacher_train_set}" \
        "${teacher_stats_dir}/train" "${teacher_stats_dir}" "${teacher}" "" ${teacher_asr_args}
fi

if runs 6 "teacher check on ${valid_set}, n-best for the KD set -> ${decode_dir}"; then
    read_preset
    labelled=${train_set}
    if [ "${labelled_targets}" = reference ]; then
        log "  ${train_set} keeps its references (labelled_targets: reference), it is not decoded"
        labelled=
    fi
    for set in ${valid_set} ${labelled} ${unlabelled_set}; do
        log "  ${set} -> ${decode_dir}/${set}"
        teacher_decode "${set}"
    done
fi

if runs 7 "soft targets: none are stored, teachers speak during stage 10 (stored targets are not there yet)"; then :; fi

if runs 8 "KD training set -> ${kd_data}"; then
    read_preset
    sources=(--labelled_data_dir "${data_feats}/${train_set}")
    if [ "${labelled_targets}" != reference ]; then
        sources=(--labelled "${decode_dir}/${train_set}"/hypotheses.*.jsonl)
    fi
    if [ -n "${unlabelled_set}" ]; then
        sources+=(--unlabelled "${decode_dir}/${unlabelled_set}"/hypotheses.*.jsonl)
    fi
    # shellcheck disable=SC2086
    join_targets "${sources[@]}" ${kd_set_options} ${tokenizing} --output_dir "${kd_data}" --shape_dir "${kd_data}_shapes"
fi

start=()
[ -z "${pretrained_model}" ] || start=(--init_param "${pretrained_model}" --ignore_init_mismatch "${ignore_init_mismatch}")
if runs 9 "student without KD on ${train_set} -> ${asr_exp}"; then
    # shellcheck disable=SC2086
    train "${asr_task}" "${asr_config}" "${data_feats}/${train_set}" "${asr_stats_dir}/train" \
        "${asr_stats_dir}" "${asr_exp}" "${pretrained_model%%:*}" "${start[@]}" ${asr_args}
fi

if runs 10 "student with KD on ${kd_data} -> ${kd_exp}"; then
    teach
    configure "${kd_exp}" merge "${asr_config}" "${kd_config}"
    # shellcheck disable=SC2086
    train "${asr_task}" "${kd_exp}/train.yaml" "${kd_data}" "${kd_data}_shapes" "${asr_stats_dir}" "${kd_exp}" \
        "${pretrained_model%%:*} ${teachers[*]/%//${teacher_model}}" "${start[@]}" "${teaching[@]}" ${asr_args} ${kd_args}
fi

if runs 11 "sparse student of ${teacher} on ${teacher_train_set} -> ${sparse_exp:-nothing, no --sparse_config}" && [ -n "${sparse_config}" ]; then
    teach
    configure "${sparse_exp}" sparse "${teacher}/config.yaml" "${sparse_config}" --token_list "${token_list}"
    # The normalisation is the teacher's, in train.yaml.
    # shellcheck disable=SC2086
    feats_normalize=as_the_teacher train "$(task_of "${teacher}")" "${sparse_exp}/train.yaml" "${data_feats}/${teacher_train_set}" \
        "${teacher_stats_dir}/train" "${teacher_stats_dir}" "${sparse_exp}" "${teachers[*]/%//${teacher_model}}" \
        --init_param "${teacher}/${teacher_model}" "${teaching[@]}" ${sparse_args}
fi

if runs 12 "decoding of ${eval_sets} with stock ESPnet inference"; then
    find_trained
    for system in "${trained[@]}"; do
        read -r name task exp model <<<"${system}"
        # shellcheck disable=SC2086
        choose_search ${system}
        search="${config:+--config ${config} }${lm[*]:+${lm[*]} }${args}"
        log "  ${name} -> ${results}${search:+ (${search})}"
        for set in ${eval_sets}; do
            made="${exp}/config.yaml ${exp}/${model} ${lm[*]} $(tables_of "${set}")"
            before=${exp%/}/${tag}/${set}/text
            if ! is_here "${exp}" && [ "${before}" -nt "${exp}/${model}" ]; then
                log "    ${before}: decoded by asr.sh before, taken"
                once "${results}/${set}" "${before} ${made}" cp "${before}" "${results}/${set}/text"
            elif is_here "${exp}" && [ ${#asr_sh[@]} -gt 0 ] && [ "${set}" != "${valid_set}" ]; then
                # asr.sh makes its own search of the same options; here it is part of the key.
                # shellcheck disable=SC2086
                once "${results}/${set}" "${made}" by_asr_sh 12 "${task}" "${exp}" "${model}" "${set}" ${search}
            else
                # shellcheck disable=SC2086
                once "${results}/${set}" "${made}" decode "${task}" "${exp}" "${model}" "${set}" "${results}/${set}" ${search}
            fi
        done
    done
fi

if runs 13 "scoring -> <results>/<set>/score_wer/result.md"; then
    find_trained
    scored=()
    for set in ${eval_sets}; do
        find_decoded "${set}"
    done
    folders=" "
    for system in "${scored[@]}"; do
        read -r name dir ref hyp <<<"${system}"
        [[ ${folders} != *" ${dir} "* ]] || continue # of a teacher that is the student too
        folders+="${dir} "
        once "${dir}/score_wer" "${ref} ${hyp}" quietly ${python} -m espnet_kd.bin.report \
            --ref "${ref}" --hyp "${name}" "${hyp}" --output "${dir}/score_wer/result.md"
        log "  ${dir}/score_wer/result.md"
    done
    score_as_asr_sh
fi

if runs 14 "report -> ${report_dir}/report_<set>.md"; then
    find_trained
    for set in ${eval_sets}; do
        find_decoded "${set}"
        [[ ${names} != *" teacher "* ]] || options+=(--teacher teacher)
        [[ ${names} != *" student "* ]] || options+=(--baseline student)
        report=${report_dir}/report_${set//\//_}
        # Its mark has a folder of its own: that of the experiment is the training's.
        [ -e "${report}.md" ] || act rm -f "${report%/*}/.${report##*/}/.done"
        once "${report%/*}/.${report##*/}" "${files[*]}" quietly ${python} -m espnet_kd.bin.report "${options[@]}" --output "${report}.md"
        show "${report}.md"
    done
fi
[ "${dry_run}" = false ] || show_plan
log "Done in ${SECONDS} seconds: $0 ${run_args}"
if is_wanted 14; then # by paths from where make was started, or from here
    for set in ${eval_sets}; do
        realpath --relative-to="${STARTED_IN:-${PWD}}" "${report_dir}/report_${set//\//_}".{md,png}
    done
fi
