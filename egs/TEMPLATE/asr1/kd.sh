#!/usr/bin/env bash
# Knowledge distillation for an ESPnet2 ASR recipe: from data to a table of teacher,
# student without KD and student with KD. Run it in the recipe folder.
# Its functions and names are in utils/.
# shellcheck disable=SC2034,SC2154
set -euo pipefail
SECONDS=0

# General
stage=1               # First stage to run.
stop_stage=10000      # Last stage to run.
skip_stages=          # Stages to leave out, e.g. "1 2".
dry_run=false         # Check, show what each stage would do, write nothing.
ngpu=1                # GPUs for training (0: CPU).
num_nodes=1           # Machines for training.
nj=32                 # Jobs for data, statistics and teacher decoding.
inference_nj=32       # Jobs for decoding the test sets.
gpu_inference=false   # Decode on GPUs.
dumpdir=dump          # Folder of the formatted data.
expdir=exp            # Folder of the experiments.
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
asr_text_fold_length=150  # Fold length of text.
ignore_init_mismatch=false # Whether pretrained_model may lack parts.
num_splits_asr=1          # Parts of the training set, read one after the other.

# Teacher
teacher_task=             # Task of stage 5 (default: asr_task); not of a trained one.
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
sparse_config=        # Preset or own file, e.g. conf/kd/sparse.yaml (default: none).
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
local_score_opts=         # Options of local/score.sh, if there is one (stage 13).
eval_valid_set=false      # Decode and score the valid set too.
use_lm=true               # Decode with the language model of lm_exp.
lm_exp=                   # Its folder (default: as asr.sh names it).
inference_lm=valid.loss.ave.pth # Its checkpoint.
use_ngram=false           # Decode with the n-gram model of ngram_exp.
ngram_exp=                # Its folder (default: as asr.sh names it).
inference_ngram=3gram.bin # Its file.

# asr.sh's other options are accepted, so that a run.sh line can be pasted. These would
# change its results; if one is given, a log line notes that it is not used here.
declare -A unused=(
    [use_lightning]=false [audio_format]=flac [min_wav_duration]=0.1
    [max_wav_duration]=20 [oov]="<unk>" [blank]="<blank>" [sos_eos]="<sos/eos>"
    [bpe_input_sentence_size]=100000000 [bpe_nlsyms]="" [bpe_char_cover]=1.0
    [hugging_face_model_name_or_path]=""
    [download_model]="" [bpe_train_text]=""
    [auxiliary_data_tags]="" [post_process_local_data_opts]="" [use_text_prev]=false
)
for option in "${!unused[@]}"; do
    printf -v "${option}" '%s' "${unused[${option}]}"
done
# KD cannot do these: refused where they are true.
refused="use_word_lm use_k2 use_streaming use_maskctc use_prompt use_lang_prompt
    use_nlp_prompt sot_asr multi_columns_input_wav_scp multi_columns_output_wav_scp"
for option in ${refused}; do printf -v "${option}" false; done
# And these change nothing here but names (lm_*), or only what the recipe's asr.sh does.
skip_data_prep=false skip_train=false skip_eval=false skip_upload=true \
    skip_upload_hf=true skip_packing=true debug=false hf_repo="" ngram_num=3 \
    lm_tag="" lm_stats_dir="" lm_config="" lm_args="" lm_fold_length=150 \
    num_splits_lm=1 word_vocab_size=10000 lm_train_text="" lm_dev_text="" \
    lm_test_text="" k2_ctc_decoding=true use_nbest_rescoring=true num_paths=1000 \
    nll_batch_size=100 k2_config=./conf/decode_asr_transformer_with_k2.yaml \
    score_opts="" ref_text_files_str="text " ref_num=1 num_ref=1 num_inf=""

help_message="Usage: $0 --train_set NAME --valid_set NAME --test_sets \"NAMES\" \\
    --asr_config FILE --kd_config FILE [options]

$(sed -n '/^# General/,/^# asr.sh.s other/p' "$0" | sed '$d')

Stages: 1 data, 2 format and speed perturbation, 3 token list, 4 statistics, 5 teacher
training, 6 teacher check and decoding, 7 soft targets, 8 KD training set, 9 student
without KD, 10 student with KD, 11 sparse student, 12 decoding, 13 scoring, 14 report.

asr.sh's other options are accepted as well."

# Our other files are beside kd.sh; those of a copy are in the installed package, which
# the recipe's Python finds.
here=${KD_SH_JOB:-$(dirname "$(readlink -f "$0")")}
if [ ! -e "${here}/utils/kd_start.sh" ]; then
    here=$(
        its_python=${python}
        for ((i = 1; i < $#; i++)); do
            [ "${!i}" != --python ] || { value=$((i + 1)) && its_python=${!value}; }
        done
        set -- # a sourced path.sh sees the positional parameters
        # shellcheck disable=SC1091
        [ ! -e path.sh ] || . ./path.sh >&2
        ${its_python} -c 'import espnet_kd, pathlib
print(pathlib.Path(espnet_kd.__file__).parent / "shipped" / "asr1")'
    )
fi
# shellcheck source=utils/kd_stop.sh
. "${here}/utils/kd_stop.sh" # signals end all that is started below
# shellcheck source=utils/kd_start.sh
. "${here}/utils/kd_start.sh" # path.sh, the options, cmd.sh, functions
# shellcheck source=utils/kd_names.sh
. "${here}/utils/kd_names.sh" # of sets, files and folders, as asr.sh derives them
if [ "${dry_run}" = true ]; then
    # shellcheck source=utils/kd_dry_run.sh
    . "${here}/utils/kd_dry_run.sh" # the stages only check
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
        once "${data_feats}/${set}" "${source}/*" \
            ${python} -m espnet_kd.bin.format_data --data_dir "${source}" \
            --output_dir "${data_feats}/${set}" --fs "${fs}" "${factors[@]}"
    done
fi

token_text=${data_feats}/${teacher_train_set}/text
if runs 3 "token list from ${token_text} -> ${token_list}"; then
    if may_write "${token_dir}" "${token_list}"; then
        once "${token_dir}" "${token_text} ${nlsyms_txt}" \
            ${python} -m espnet_kd.bin.token_list --text "${token_text}" \
            --token_type "${token_type}" --nbpe "${nbpe}" --bpemode "${bpemode}" \
            --nlsyms_txt "${nlsyms_txt}" --cleaner "${cleaner}" \
            --output_dir "${token_dir}"
    fi
fi

# shellcheck disable=SC2086
if runs 4 "statistics -> ${asr_stats_dir} ${teacher_stats_dir}"; then
    stats "${asr_task}" "${asr_config}" "${train_set}" "${asr_stats_dir}" ${asr_args}
    if [ "${teacher_stats_dir}" = "${asr_stats_dir}" ]; then
        : # the same audio, read in the same way
    elif [ -n "${teacher_asr_config}" ]; then
        stats "$(task_of "${teacher}")" "${teacher_asr_config}" "${teacher_train_set}" \
            "${teacher_stats_dir}" ${teacher_asr_args}
    else # stage 11 needs the lengths of audio and text of a trained teacher's set
        stats "${asr_task}" "${asr_config}" "${teacher_train_set}" \
            "${teacher_stats_dir}" ${asr_args}
    fi
fi

if runs 5 "teacher training on ${teacher_train_set} -> ${teacher_exp}"; then
    # shellcheck disable=SC2086
    train "$(task_of "${teacher}")" "${teacher_asr_config}" \
        "${data_feats}/${teacher_train_set}" "${teacher_stats_dir}/train" \
        "${teacher_stats_dir}" "${teacher}" "" ${teacher_asr_args}
fi

if runs 6 "teacher check on ${valid_set}, n-best for the KD set -> ${decode_dir}"; then
    read_preset
    labelled=${train_set}
    if [ "${labelled_targets}" = reference ]; then
        log "  ${train_set} keeps its references, it is not decoded" \
            "(labelled_targets: reference)"
        labelled=
    fi
    for set in ${valid_set} ${labelled} ${unlabelled_set}; do
        log "  ${set} -> ${decode_dir}/${set}"
        teacher_decode "${set}"
    done
fi

if runs 7 "soft targets: none are stored yet; the teachers run during stage 10"; then
    :
fi

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
    join_targets "${sources[@]}" ${kd_set_options} ${tokenizing} \
        --output_dir "${kd_data}" --shape_dir "${kd_data}_shapes"
fi

start=()
if [ -n "${pretrained_model}" ]; then
    start=(--init_param "${pretrained_model}"
        --ignore_init_mismatch "${ignore_init_mismatch}")
fi
if runs 9 "student without KD on ${train_set} -> ${asr_exp}"; then
    # shellcheck disable=SC2086
    train "${asr_task}" "${asr_config}" "${data_feats}/${train_set}" \
        "${asr_stats_dir}/train" "${asr_stats_dir}" "${asr_exp}" \
        "${pretrained_model%%:*}" "${start[@]}" ${asr_args}
fi

if runs 10 "student with KD on ${kd_data} -> ${kd_exp}"; then
    teach
    configure "${kd_exp}" merge "${asr_config}" "${kd_config}"
    # shellcheck disable=SC2086
    train "${asr_task}" "${kd_exp}/train.yaml" "${kd_data}" \
        "${kd_data}_shapes" "${asr_stats_dir}" "${kd_exp}" \
        "${pretrained_model%%:*} ${teacher_files}" \
        "${start[@]}" "${teaching[@]}" ${asr_args} ${kd_args}
fi

what="sparse student of ${teacher} on ${teacher_train_set}"
if runs 11 "${what} -> ${sparse_exp:-nothing, no --sparse_config}" &&
    [ -n "${sparse_config}" ]; then
    teach
    configure "${sparse_exp}" sparse "${teacher}/config.yaml" "${sparse_config}" \
        --token_list "${token_list}"
    # The normalisation is the teacher's, in train.yaml.
    # shellcheck disable=SC2086
    feats_normalize=as_the_teacher train "$(task_of "${teacher}")" \
        "${sparse_exp}/train.yaml" "${data_feats}/${teacher_train_set}" \
        "${teacher_stats_dir}/train" "${teacher_stats_dir}" "${sparse_exp}" \
        "${teacher_files}" \
        --init_param "${teacher}/${teacher_model}" "${teaching[@]}" ${sparse_args}
fi

if runs 12 "decoding of ${eval_sets} with stock ESPnet inference"; then
    find_trained
    for system in "${trained[@]}"; do
        decode_system "${system}"
    done
fi

if runs 13 "scoring -> <results>/<set>/score_wer/result.md"; then
    find_trained
    scored=()
    for set in ${eval_sets}; do
        find_decoded "${set}"
    done
    score_all "${scored[@]}"
    score_as_asr_sh
fi

if runs 14 "report -> ${report_dir}/report_<set>.md"; then
    find_trained
    for set in ${eval_sets}; do
        find_decoded "${set}"
        report "${set}"
    done
fi

[ "${dry_run}" = false ] || show_plan
log "Done in ${SECONDS} seconds: $0 ${run_args}"
if is_selected 14; then # by paths from where make was started, or from here
    for set in ${eval_sets}; do
        realpath --relative-to="${STARTED_IN:-${PWD}}" "$(report_of "${set}")".{md,png}
    done
fi
