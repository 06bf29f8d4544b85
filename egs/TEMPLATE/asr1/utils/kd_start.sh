# The start of kd.sh, sourced by it: path.sh, the options, cmd.sh, the functions, and
# words for the checks. ${here} is the folder of our other files.
# shellcheck shell=bash disable=SC2034,SC2154

# The recipe's own path.sh, utils/parse_options.sh and cmd.sh; ours where it has none.
words=("$@")
run_args=$(printf '%q ' "$@")
set -- # a sourced path.sh sees the positional parameters
# shellcheck disable=SC1091
if [ -e path.sh ]; then . ./path.sh; else . "${here}/path.sh"; fi
# shellcheck source=kd_functions.sh
. "${here}/utils/kd_functions.sh"
# shellcheck source=kd_training.sh
. "${here}/utils/kd_training.sh"
# shellcheck source=kd_decoding.sh
. "${here}/utils/kd_decoding.sh"
set -- "${words[@]}"
for file in utils/parse_options.sh cmd.sh; do
    if [ -e "${file}" ]; then file=./${file}; else file=${here}/${file}; fi
    # shellcheck disable=SC1090
    . "${file}"
done
if [ $# -gt 0 ]; then
    echo "$0: positional arguments are not accepted: $*" >&2
    exit 2
fi
PATH=${PATH}:${here}/utils:/usr/lib/sctk/bin # where Debian puts sclite

# The recipe's own asr.sh decodes and scores, with those of these options that it has.
asr_sh=()
if [ -x asr.sh ]; then
    asr_sh=(./asr.sh)
    theirs=$(sed -n '/parse_options\.sh/q; s/^\([a-z0-9_]*\)=.*/\1/p' asr.sh)
    theirs=" ${theirs//$'\n'/ } "
    not_handed_on=" stage stop_stage skip_stages download_model "
    for ((i = 0; i < ${#words[@]}; i += 2)); do
        option=${words[i]#--}
        option=${option//-/_}
        [[ ${not_handed_on} = *" ${option} "* || ${theirs} != *" ${option} "* ]] ||
            asr_sh+=("${words[@]:i:2}")
    done
fi

# cmd.sh may name Kaldi's run.pl and the like without their being installed.
for command in train_cmd cuda_cmd decode_cmd; do
    if ! command -v "${!command%% *}" >/dev/null; then
        log "${command}: ${!command%% *} is not on PATH," \
            "jobs run on this machine (run_jobs.py)"
        printf -v "${command}" run_jobs.py
    fi
done

# Faults are collected and reported together before the first stage. The values of each
# option: espnet_kd/planning/options.py.
options_given=()
for option in train_set valid_set test_sets asr_config stage stop_stage skip_stages \
    dry_run ngpu num_nodes nj inference_nj num_splits_asr batch_size teacher_nbest \
    asr_speech_fold_length asr_text_fold_length gpu_inference ignore_init_mismatch \
    eval_valid_set use_lm use_ngram skip_data_prep skip_train skip_eval asr_task \
    teacher_task token_type feats_type num_ref cuda_cmd; do
    options_given+=("option=${option} ${!option}")
done
for option in ${refused}; do
    [ "${!option}" = false ] ||
        fault "--${option} ${!option}: not supported with KD;" \
            "leave it at false"
done
for option in "${!unused[@]}"; do
    [ "${!option}" = "${unused[${option}]}" ] ||
        log "--${option} ${!option}: not used by kd.sh"
done
if ! [[ ${stage} =~ ^[0-9]+$ && ${stop_stage} =~ ^[0-9]+$ ]]; then
    stage=1 stop_stage=0 # a fault; no stage is checked
fi
[ "${skip_data_prep}" = false ] || skip_stages+=" 1 2 3 4"
[ "${skip_train}" = false ] || skip_stages+=" 5 6 7 8 9 10 11"
[ "${skip_eval}" = false ] || skip_stages+=" 12 13 14"
