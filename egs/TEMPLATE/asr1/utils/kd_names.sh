# Names of sets, files and folders, as asr.sh derives them from the same options.
# Sourced by kd.sh.
# shellcheck shell=bash disable=SC2034,SC2154

# Sets
teacher_train_set=${teacher_train_set:-${train_set}}
data_train_sets= # whose speed is changed
if [ -n "${speed_perturb_factors}" ]; then
    data_train_sets=$(printf '%s\n' "${train_set}" "${teacher_train_set}" | sort -u)
    train_set=${train_set}_sp
    teacher_train_set=${teacher_train_set}_sp
fi
data_feats=${dumpdir}/${feats_type}
# shellcheck disable=SC2086
all_sets=$(printf '%s\n' "${train_set}" "${teacher_train_set}" ${unlabelled_set} \
    "${valid_set}" ${test_sets} | sort -u)
# The valid set is decoded as it was before asr.sh removed long and short utterances.
valid_eval_set=${valid_set}
[ ! -d "${data_feats}/org/${valid_set}" ] || valid_eval_set=org/${valid_set}
[[ " ${test_sets} " != *" ${valid_set} "* ]] || eval_valid_set=true
# shellcheck disable=SC2086
eval_sets=$(printf '%s\n' ${test_sets} |
    awk -v valid="${valid_set}" '$0 != valid && !known[$0]++')
[ "${eval_valid_set}" = false ] || eval_sets="${valid_eval_set} ${eval_sets}"
eval_sets=${eval_sets//$'\n'/ }

# Tokens
_lang=$([ "${lang}" = noinfo ] || echo "${lang}_")
token_name=${token_type}
token_tag=${token_type}
[ "${token_type}" != bpe ] || token_name=bpe_${bpemode}${nbpe} token_tag=bpe${nbpe}
token_dir=data/${_lang}token_list/${token_name}
token_list=${token_list:-${token_dir}/tokens.txt}
if [ "${token_type}" = bpe ]; then
    bpemodel=${bpemodel:-${token_dir}/bpe.model}
else
    bpemodel=none
fi
tokenizing="--token_type ${token_type} --token_list ${token_list}"
tokenizing+=" --bpemodel ${bpemodel} --non_linguistic_symbols ${nlsyms_txt}"
tokenizing+=" --cleaner ${cleaner} --g2p ${g2p}"
model_options="--use_preprocessor true ${tokenizing} --frontend_conf fs=${fs}"

# Student
stats_tag=${feats_type}_${_lang}${token_tag}
[ -z "${speed_perturb_factors}" ] || stats_tag+=_sp
asr_stats_dir=${asr_stats_dir:-${expdir}/asr_stats_${stats_tag}}
asr_tag=${asr_tag:-$(tag_of "${asr_config}" "${asr_args}")}
asr_exp=${asr_exp:-${expdir}/asr_${asr_tag}}

# Teachers
teacher_stats_dir=${asr_stats_dir}
if [ -n "${teacher_asr_config}" ]; then
    teacher_tag=$(tag_of "${teacher_asr_config}" "${teacher_asr_args}")
    teacher_exp=${teacher_exp:-${expdir}/asr_${teacher_tag}}
    # The student's statistics fit where the teacher reads the same in the same way.
    reads="${train_set} ${asr_args} $(frontend_of "${asr_config}")"
    teacher_reads="${teacher_train_set} ${teacher_asr_args}"
    teacher_reads+=" $(frontend_of "${teacher_asr_config}")"
    [ "${teacher_reads}" = "${reads}" ] ||
        teacher_stats_dir=${asr_stats_dir}_${teacher_train_set}
elif [ -n "${sparse_config}" ] && [ "${teacher_train_set}" != "${train_set}" ]; then
    teacher_stats_dir=${asr_stats_dir}_${teacher_train_set}
fi
read -r -a teachers <<<"${teacher_exp}"
teacher=${teachers[0]:-} # decodes, and is made sparse
teacher_files=${teachers[*]/%//${teacher_model}}
decode_dir=$(place_of "${teacher}")

# Students with KD
kd_tag=${kd_tag:-$([ -z "${kd_config}" ] || name_of "${kd_config}")}
kd_data=${data_feats}/${train_set}_kd_${kd_tag}
kd_exp=${asr_exp}_kd_${kd_tag}
kd_set_options=''
labelled_targets=both # without a preset all audio is decoded
if [ -n "${sparse_config}" ]; then
    [ -n "${sparse_tag}" ] ||
        sparse_tag=$(name_of "${sparse_config}")$(tag_of_args "${sparse_args}")
    sparse_exp=${sparse_exp:-${expdir}/$(basename "${teacher}")_${sparse_tag}}
fi
report_dir=${asr_exp}
[ -z "${kd_tag}" ] || report_dir=${kd_exp}
[ -z "${sparse_config}" ] || report_dir=${sparse_exp}

# Language models
if [ -z "${lm_tag}" ]; then
    lm_tag=$([ -n "${lm_config}" ] && name_of "${lm_config}" || echo train)
    lm_tag+=_${_lang}${token_tag}$(tag_of_args "${lm_args}")
fi
lm_exp=${lm_exp:-${expdir}/lm_${lm_tag}}
ngram_exp=${ngram_exp:-${expdir}/ngram}
# A missing one is reported before the trainings.
if is_selected 12 || is_selected 13 || is_selected 14; then choose_lm; fi
inference_ngpu=0
if [ "${gpu_inference}" = true ]; then
    inference_ngpu=1
    decode_cmd=${cuda_cmd}
fi

# Faults of the names themselves.
[[ " ${teachers[*]%/} " != *" ${asr_exp%/} "* ]] || [ ! -e "${asr_exp}/config.yaml" ] ||
    is_ours "${asr_exp}" ||
    fault "${asr_exp} is the teacher's folder: choose another with --asr_config," \
        "--asr_tag or --asr_exp"
for folder in "${asr_exp}" "${kd_exp}" "${sparse_exp}" "${teachers[@]}"; do
    name=$(basename "${folder}")
    [ ${#name} -le 255 ] || fault "${name}: longer than 255 characters;" \
        "set --asr_tag, --kd_tag, --sparse_tag or --teacher_exp"
done

# What espnet_kd.bin.check reads; the fields are described in
# espnet_kd/planning/chain.py.
wanted=$(for number in {1..14}; do
    ! is_selected "${number}" || echo -n "${number} "
done)
resolved="wanted data_feats train_set teacher_train_set data_train_sets valid_set
    unlabelled_set all_sets eval_sets fs token_type token_dir token_list bpemodel
    nlsyms_txt nbpe asr_task asr_config asr_args asr_exp asr_stats_dir feats_normalize
    pretrained_model teacher_task teacher_asr_config teacher_asr_args teacher_exp
    teacher_model teacher_weights teacher_stats_dir teacher_inference_config
    teacher_inference_args teacher_nbest decode_dir kd_config kd_args kd_tag kd_set_args
    kd_data kd_exp sparse_config sparse_args sparse_exp sparse_model inference_config
    inference_asr_model lm_exp inference_lm use_lm use_ngram ngram_exp inference_ngram
    ngpu num_splits_asr nj gpu_inference speed_perturb_factors"
