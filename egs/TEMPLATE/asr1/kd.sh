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
feats_type=raw            # raw or raw_copy.
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
    [use_word_lm]=false [download_model]="" [bpe_train_text]=""
    [auxiliary_data_tags]="" [post_process_local_data_opts]="" [use_text_prev]=false
)
for option in "${!unused[@]}"; do printf -v "${option}" '%s' "${unused[${option}]}"; done
# KD cannot do these: refused where they are true.
refused="use_k2 use_streaming use_maskctc use_prompt use_lang_prompt use_nlp_prompt sot_asr
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

die() { log "Error: $*" >&2; exit 1; }
need() { for name in "$@"; do [ -n "${!name}" ] || die "--${name} is needed (see --help)"; done; }
made_by() { # made_by STAGES FILE...: refuse to go on without a file of an earlier stage
    local stages=$1 file
    shift
    for file in "$@"; do
        [ -e "${file}" ] || die "${file} is not there: run stage ${stages} of kd.sh, or what makes it in asr.sh, first"
    done
}
is_wanted() { # is_wanted STAGE
    [ "${stage}" -le "$1" ] && [ "$1" -le "${stop_stage}" ] || return 1
    [[ ! " ${skip_stages} " =~ [[:space:]]$1[[:space:]] ]]
}
runs() { # runs STAGE WHAT: whether a stage is asked for; says what it does
    is_wanted "$1" && log "Stage $1: $2"
}

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
once() { # once DIR "FILE..." COMMAND...: skip what has ended well in DIR from the same FILEs
    local dir=$1 key
    key=$(key_of "${@:2}")
    is_done "${dir}" "${key}" && return
    begin "${dir}" "${key}"
    "${@:3}" || return # set -e does not hold within a condition
    touch "${dir}/.done"
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

# Kaldi's run.pl and the like may be named in cmd.sh and not be installed.
for command in train_cmd cuda_cmd decode_cmd; do
    if ! command -v "${!command%% *}" >/dev/null; then
        log "${command}: ${!command%% *} is not on PATH, jobs run on this machine (run_jobs.py)"
        printf -v "${command}" run_jobs.py
    fi
done

need train_set valid_set test_sets asr_config
[[ ${stage}${stop_stage} =~ ^[0-9]+$ ]] || die "--stage ${stage}, --stop_stage ${stop_stage}: whole numbers are wanted"
[[ ${num_nodes} -eq 1 || ! ${cuda_cmd} =~ ^(.*/)?(run_jobs.py|run.pl) ]] ||
    die "--num_nodes ${num_nodes}: ${cuda_cmd%% *} starts jobs on this machine alone; set cuda_cmd in cmd.sh to slurm.pl, or leave it at 1"
[ "${num_ref}" -eq 1 ] || die "--num_ref ${num_ref}: KD knows one reference, leave it at 1"
[[ ${feats_type} =~ ^raw(_copy)?$ ]] || die "--feats_type ${feats_type}: KD reads waveforms, only raw and raw_copy are taken"
for option in ${refused}; do
    [ "${!option}" = false ] || die "--${option} ${!option}: KD has no such training or decoding, leave it at false"
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
char) token_name=char token_tag=char ;;
*) die "--token_type ${token_type}: bpe or char" ;;
esac
token_dir=data/${_lang}token_list/${token_name}
token_list=${token_list:-${token_dir}/tokens.txt}
if [ "${token_type}" = bpe ]; then bpemodel=${bpemodel:-${token_dir}/bpe.model}; else bpemodel=none; fi
tag_of_args() { echo "$1" | sed -e 's/--/\_/g' -e 's/[ |=/]//g'; } # tag_of_args ARGS
tag_of() { # tag_of CONFIG ARGS
    local tag
    tag="$(name_of "$1")_${feats_type}_${_lang}${token_tag}"
    [ -z "$2" ] || tag+=$(tag_of_args "$2")
    [ -z "${speed_perturb_factors}" ] || tag+=_sp
    echo "${tag}"
}
stats_tag=${feats_type}_${_lang}${token_tag}
[ -z "${speed_perturb_factors}" ] || stats_tag+=_sp
asr_stats_dir=${asr_stats_dir:-${expdir}/asr_stats_${stats_tag}}
asr_tag=${asr_tag:-$(tag_of "${asr_config}" "${asr_args}")}
asr_exp=${asr_exp:-${expdir}/asr_${asr_tag}}
teacher_stats_dir=${asr_stats_dir}
frontend_of() { awk '/^[a-z]/ { on = /^frontend/ } on' "$1"; } # frontend_of CONFIG
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
kd_tag=${kd_tag:-$([ -z "${kd_config}" ] || name_of "${kd_config}")}
kd_data=${data_feats}/${train_set}_kd_${kd_tag}
kd_exp=${asr_exp}_kd_${kd_tag}
if [ -n "${sparse_config}" ]; then
    sparse_tag=${sparse_tag:-$(name_of "${sparse_config}")$(tag_of_args "${sparse_args}")}
    sparse_exp=${sparse_exp:-${expdir}/$(basename "${teachers[0]:-}")_${sparse_tag}}
fi
[[ " ${teachers[*]%/} " != *" ${asr_exp%/} "* ]] || [ ! -e "${asr_exp}/config.yaml" ] || is_ours "${asr_exp}" ||
    die "${asr_exp} is the teacher's folder: name the student's by --asr_config, --asr_tag or --asr_exp"
for folder in "${asr_exp}" "${kd_exp}" "${sparse_exp}" "${teachers[@]}"; do
    name=$(basename "${folder}")
    [ ${#name} -le 255 ] || die "${name} is too long a name: give --asr_tag, --kd_tag, --sparse_tag or --teacher_exp"
done
decode_dir=$(place_of "${teachers[0]:-}")
if [ -z "${lm_exp}" ]; then
    [ -n "${lm_tag}" ] || lm_tag=$([ -n "${lm_config}" ] && name_of "${lm_config}" || echo train)_${_lang}${token_tag}$(tag_of_args "${lm_args}")
    lm_exp=${expdir}/lm_${lm_tag}
fi
ngram_exp=${ngram_exp:-${expdir}/ngram}
choose_lm() { # sets lm, options of decoding, and lm_name, part of a decoding's name
    lm=() lm_name=
    if [ "${use_lm}" = true ] && [ -e "${lm_exp}/config.yaml" ]; then
        lm=(--lm_train_config "${lm_exp}/config.yaml" --lm_file "${lm_exp}/${inference_lm}")
        lm_name=_lm_$(basename "${lm_exp}")_$(stem_of "${inference_lm}")
    elif [ "${use_lm}" = true ]; then
        [ ${#asr_sh[@]} -eq 0 ] || die "--use_lm true: ${lm_exp}/config.yaml is not there: train it (asr.sh, stages 6 to 8), give --lm_exp, or --use_lm false"
        log "  --use_lm true: ${lm_exp}/config.yaml is not there, no LM is used but one that --inference_args names"
    fi
    if [ "${use_ngram}" = true ]; then
        lm+=(--ngram_file "${ngram_exp}/${inference_ngram}")
        lm_name+=_ngram_$(basename "${ngram_exp}")_$(stem_of "${inference_ngram}")
    fi
}
stem_of() { echo "$1" | sed -e 's/\//_/g' -e 's/\.[^.]*$//'; }
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
    ! grep -qE '\.ark:[0-9]+$' "$2/wav.scp" || type=kaldi_ark
    echo "--$1_data_path_and_name_and_type $2/wav.scp,speech,${type}"
    [ ! -e "$2/text" ] || echo "--$1_data_path_and_name_and_type $2/text,text,text"
    [ ! -e "$2/kd_weight" ] || echo "--$1_data_path_and_name_and_type $2/kd_weight,kd_weight,text_float"
}
collect_stats() { # collect_stats TASK CONFIG SET STATS_DIR [option...] (called by once: dies itself)
    local task=$1 config=$2 set=$3 dir=$4 part jobs opts=""
    shift 4
    made_by 2 "${data_feats}/${set}/wav.scp" "${data_feats}/${valid_set}/wav.scp"
    made_by 3 "${token_list}"
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
        --output_dir "${dir}"/logdir/stats.JOB "$@" || die "statistics failed, see ${dir}/logdir/stats.*.log"
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
    local exp=$1 job=$1/train.log
    [[ ${cuda_cmd} != *queue*.pl* ]] || job=$(basename "${exp}") # SGE takes no "/" in a name
    ${python} -m espnet2.bin.launch --cmd "${cuda_cmd} --name ${job}" --log "${exp}"/train.log \
        --ngpu "${ngpu}" --num_nodes "${num_nodes}" --init_file_prefix "${exp}"/.dist_init_ \
        --multiprocessing_distributed true -- "${@:2}" || die "training failed, see ${exp}/train.log"
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
    made_by "2 or 8" "${data}/wav.scp" "${data_feats}/${valid_set}/wav.scp"
    made_by 3 "${token_list}"
    made_by "4 or 8" "${shapes}/speech_shape" "${shapes}/text_shape.${token_type}" "${stats}/valid/speech_shape"
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
    touch "${exp}/.done"
}
teacher_decode() { # teacher_decode SET: n-best of the first teacher
    local set=$1 dir=${decode_dir}/$1 jobs config=() key
    made_by 2 "${data_feats}/${set}/wav.scp"
    made_by 5 "${teachers[0]}/config.yaml" "${teachers[0]}/${teacher_model}"
    jobs=$(jobs_for "${data_feats}/${set}/wav.scp" "${nj}")
    [ ! -e "${dir}/hypotheses.$((jobs + 1)).jsonl" ] ||
        die "${dir} holds the shards of more than ${jobs} jobs: give the same --nj, or delete the folder"
    key=$(key_of "$(tables_of "${set}")") # shards know their teacher, not the audio
    [ ! -e "${dir}/.command" ] || [ "$(cat "${dir}/.command")" = "${key}" ] ||
        die "${dir} holds hypotheses of other audio: ${data_feats}/${set} was made anew; delete the folder"
    begin "${dir}" "${key}"
    rm -rf "${dir}/logdir"
    split_keys "${data_feats}/${set}/wav.scp" "${dir}/logdir" "${jobs}"
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
        die "decoding failed, see ${dir}/logdir/decode.*.log"
    for file in text token score; do
        for part in $(seq "${jobs}"); do cat "${dir}/logdir/output.${part}/1best_recog/${file}" || exit; done |
            LC_ALL=C sort -k1,1 >"${dir}/${file}" || die "${dir}/logdir: an output lacks ${file}"
    done
}
needs_teacher() { [ ${#teachers[@]} -gt 0 ] || die "--teacher_exp (trained) or --teacher_asr_config (stage 5) is needed"; }
kd_set_options= labelled_targets=both # without a preset all audio is decoded
read_preset() { # sets the options of kd_set, and of them labelled_targets
    [ -n "${kd_config}" ] && [ -z "${kd_set_options}" ] || return 0
    kd_set_options="$(${python} -m espnet_kd.bin.preset options --kd_config "${kd_config}") ${kd_set_args}"
    labelled_targets=$(echo "--labelled_targets reference ${kd_set_options}" | sed -E 's/.*--labelled_targets[= ]+([a-z]+).*/\1/')
}

if runs 1 "data preparation: local/data.sh -> data/"; then
    # shellcheck disable=SC2086
    python="${python}" local/data.sh ${local_data_opts}
fi

all_sets=$(printf '%s\n' "${train_set}" "${teacher_train_set}" ${unlabelled_set} "${valid_set}" ${test_sets} | sort -u)
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
    made_by 2 "${data_feats}/${teacher_train_set}/text"
    if may_write "${token_dir}" "${token_list}"; then
        once "${token_dir}" "${data_feats}/${teacher_train_set}/text ${nlsyms_txt}" \
            ${python} -m espnet_kd.bin.token_list --text "${data_feats}/${teacher_train_set}/text" \
            --token_type "${token_type}" --nbpe "${nbpe}" --bpemode "${bpemode}" \
            --nlsyms_txt "${nlsyms_txt}" --cleaner "${cleaner}" --output_dir "${token_dir}"
    fi
fi

stats() { # stats TASK CONFIG SET STATS_DIR [option...]
    may_write "$4" "$4/train/speech_shape" || return 0
    once "$4" "$(tables_of "$3" "${valid_set}") ${token_list} ${bpemodel}" collect_stats "$1" "$2" "$3" "$4" ${model_options} "${@:5}"
}
# shellcheck disable=SC2086
if runs 4 "statistics -> ${asr_stats_dir} ${teacher_stats_dir}"; then
    stats "${asr_task}" "${asr_config}" "${train_set}" "${asr_stats_dir}" ${asr_args}
    if [ "${teacher_stats_dir}" != "${asr_stats_dir}" ]; then
        # Of a trained teacher only the lengths of audio and text are needed, in stage 11.
        if [ -n "${teacher_asr_config}" ]; then
            stats "$(task_of "${teachers[0]}")" "${teacher_asr_config}" "${teacher_train_set}" "${teacher_stats_dir}" ${teacher_asr_args}
        else
            stats "${asr_task}" "${asr_config}" "${teacher_train_set}" "${teacher_stats_dir}" ${asr_args}
        fi
    fi
fi

if runs 5 "teacher training on ${teacher_train_set} -> ${teacher_exp}"; then
    need teacher_asr_config
    # shellcheck disable=SC2086
    train "$(task_of "${teachers[0]}")" "${teacher_asr_config}" "${data_feats}/${teacher_train_set}" \
        "${teacher_stats_dir}/train" "${teacher_stats_dir}" "${teachers[0]}" "" ${teacher_asr_args}
fi

if runs 6 "teacher check on ${valid_set}, n-best for the KD set -> ${decode_dir}"; then
    needs_teacher
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
    needs_teacher
    need kd_config
    read_preset
    sources=(--labelled_data_dir "${data_feats}/${train_set}")
    if [ "${labelled_targets}" != reference ]; then
        made_by 6 "${decode_dir}/${train_set}"/hypotheses.*.jsonl
        sources=(--labelled "${decode_dir}/${train_set}"/hypotheses.*.jsonl)
    fi
    if [ -n "${unlabelled_set}" ]; then
        made_by 6 "${decode_dir}/${unlabelled_set}"/hypotheses.*.jsonl
        sources+=(--unlabelled "${decode_dir}/${unlabelled_set}"/hypotheses.*.jsonl)
    fi
    made_by 2 "${data_feats}/${train_set}/wav.scp"
    made_by 3 "${token_list}"
    # shellcheck disable=SC2086
    ${python} -m espnet_kd.bin.kd_set "${sources[@]}" \
        ${kd_set_options} ${tokenizing} --output_dir "${kd_data}" --shape_dir "${kd_data}_shapes"
fi

configure() { # configure EXP merge|sparse CONFIG PRESET [option...]: EXP/train.yaml
    local exp=$1
    ${python} -m espnet_kd.bin.preset "$2" --asr_config "$3" --kd_config "$4" --output_file "${exp}/train.new.yaml" "${@:5}"
    if [ -e "${exp}/checkpoint.pth" ] && ! cmp -s "${exp}/train.new.yaml" "${exp}/train.yaml"; then
        rm "${exp}/train.new.yaml"
        refuse_other "${exp}"
    fi
    mv "${exp}/train.new.yaml" "${exp}/train.yaml"
}
teach() { # sets teaching, the options that name the teachers
    needs_teacher
    made_by 5 "${teachers[@]/%//${teacher_model}}"
    teaching=(--teacher_config "${teachers[@]/%//config.yaml}" --teacher_model_file "${teachers[@]/%//${teacher_model}}")
    # shellcheck disable=SC2206
    [ -z "${teacher_weights}" ] || teaching+=(--teacher_weight ${teacher_weights})
}
start=()
[ -z "${pretrained_model}" ] || start=(--init_param "${pretrained_model}" --ignore_init_mismatch "${ignore_init_mismatch}")
if runs 9 "student without KD on ${train_set} -> ${asr_exp}"; then
    # shellcheck disable=SC2086
    train "${asr_task}" "${asr_config}" "${data_feats}/${train_set}" "${asr_stats_dir}/train" \
        "${asr_stats_dir}" "${asr_exp}" "${pretrained_model%%:*}" "${start[@]}" ${asr_args}
fi

if runs 10 "student with KD on ${kd_data} -> ${kd_exp}"; then
    needs_teacher
    need kd_config
    teach
    configure "${kd_exp}" merge "${asr_config}" "${kd_config}"
    # shellcheck disable=SC2086
    train "${asr_task}" "${kd_exp}/train.yaml" "${kd_data}" "${kd_data}_shapes" "${asr_stats_dir}" "${kd_exp}" \
        "${pretrained_model%%:*} ${teachers[*]/%//${teacher_model}}" "${start[@]}" "${teaching[@]}" ${asr_args} ${kd_args}
fi

if runs 11 "sparse student of ${teachers[0]:-} on ${teacher_train_set} -> ${sparse_exp:-nothing, no --sparse_config}" && [ -n "${sparse_config}" ]; then
    teach
    made_by 3 "${token_list}"
    configure "${sparse_exp}" sparse "${teachers[0]}/config.yaml" "${sparse_config}" --token_list "${token_list}"
    # The normalisation is the teacher's, in train.yaml.
    # shellcheck disable=SC2086
    feats_normalize=as_the_teacher train "$(task_of "${teachers[0]}")" "${sparse_exp}/train.yaml" "${data_feats}/${teacher_train_set}" \
        "${teacher_stats_dir}/train" "${teacher_stats_dir}" "${sparse_exp}" "${teachers[*]/%//${teacher_model}}" \
        --init_param "${teachers[0]}/${teacher_model}" "${teaching[@]}" ${sparse_args}
fi

systems() { # NAME TASK FOLDER CHECKPOINT of every system: teachers, student, student with KD
    local index
    for index in "${!teachers[@]}"; do
        echo "teacher$([ "${index}" -eq 0 ] || echo "$((index + 1))") $(task_of "${teachers[index]}") ${teachers[index]} ${teacher_model}"
    done
    echo "student ${asr_task} ${asr_exp} ${inference_asr_model}"
    [ -z "${kd_tag}" ] || echo "student+KD ${asr_task} ${kd_exp} ${inference_asr_model}"
    [ -z "${sparse_config}" ] || echo "sparse $(task_of "${teachers[0]:-}") ${sparse_exp} ${sparse_model:-${teacher_model}}"
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
    [ ${#trained[@]} -gt 0 ] || die "nothing is trained: run stages 5, 9, 10 and 11 first"
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
        --python "${python} -m espnet_kd.shim" --stage "$1" --stop_stage "$1" </dev/null >>"${log}" 2>&1 || die "asr.sh failed, see ${log}"
}
if runs 12 "decoding of ${eval_sets} with stock ESPnet inference"; then
    find_trained
    for system in "${trained[@]}"; do
        read -r name task exp model <<<"${system}"
        # shellcheck disable=SC2086
        choose_search ${system}
        search="${config:+--config ${config} }${lm[*]:+${lm[*]} }${args}"
        log "  ${name} -> ${results}${search:+ (${search})}"
        for set in ${eval_sets}; do
            made_by 2 "${data_feats}/${set}/wav.scp"
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

scored_text() { # scored_text TEXT CLEANER OUTPUT: prints the file that is scored
    local filter=()
    [ ! -x local/wer_output_filter ] || filter=(--filter local/wer_output_filter)
    if [ "${nlsyms_txt} $2" = "none none" ] && [ ${#filter[@]} -eq 0 ]; then
        echo "$1"
    else
        ${python} -m espnet_kd.bin.scored_text --text "$1" --cleaner "$2" --nlsyms_txt "${nlsyms_txt}" "${filter[@]}" --output "$3" >&2 || exit
        echo "$3"
    fi
}
find_decoded() { # find_decoded SET: sets options of the report, of all decoded systems; adds them to scored
    local name task exp model system ref hyp
    names=" " options=()
    for system in "${trained[@]}"; do
        read -r name task exp model <<<"${system}"
        # shellcheck disable=SC2086
        choose_search ${system}
        [ -e "${results}/$1/text" ] || continue
        ref=$(scored_text "${data_feats}/$1/text" "${cleaner}" "${results}/$1/score_wer/ref.txt")
        hyp=$(scored_text "${results}/$1/text" "${hyp_cleaner}" "${results}/$1/score_wer/hyp.txt")
        [ ${#options[@]} -gt 0 ] || options=(--ref "${ref}")
        names+="${name} "
        options+=(--hyp "${name}" "${hyp}" --model "${name}" "${exp}/${model}")
        scored+=("${name} ${results}/$1 ${ref} ${hyp}")
    done
    [ ${#options[@]} -gt 0 ] || die "nothing is decoded for $1: run stage 12"
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
if runs 13 "scoring -> <results>/<set>/score_wer/result.md"; then
    find_trained
    scored=()
    for set in ${eval_sets}; do
        find_decoded "${set}"
    done
    for system in "${scored[@]}"; do
        read -r name dir ref hyp <<<"${system}"
        ${python} -m espnet_kd.bin.report --ref "${ref}" --hyp "${name}" "${hyp}" --output "${dir}/score_wer/result.md" >/dev/null
        log "  ${dir}/score_wer/result.md"
    done
    score_as_asr_sh
fi

report_dir=${asr_exp}
[ -z "${kd_tag}" ] || report_dir=${kd_exp}
[ -z "${sparse_config}" ] || report_dir=${sparse_exp}
if runs 14 "report -> ${report_dir}/report_<set>.md"; then
    find_trained
    for set in ${eval_sets}; do
        find_decoded "${set}"
        [[ ${names} != *" teacher "* ]] || options+=(--teacher teacher)
        [[ ${names} != *" student "* ]] || options+=(--baseline student)
        ${python} -m espnet_kd.bin.report "${options[@]}" --output "${report_dir}/report_${set//\//_}.md"
    done
fi
log "Done in ${SECONDS} seconds: $0 ${run_args}"
