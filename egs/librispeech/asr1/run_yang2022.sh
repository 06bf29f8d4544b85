#!/usr/bin/env bash
# X. Yang, Li, Woodland: Knowledge distillation for neural transducers from large
# self-supervised pre-trained models (ICASSP 2022). wav2vec 2.0 base, fine-tuned on 100 h,
# teaches Conformer transducers of a tenth of its size, one of them streaming: on the 100 h,
# with 860 h of unlabelled audio beside them, and with a language model in the teacher's
# search. RESULTS.md has the paper's numbers; conf/yang2022/*.yaml mark what is the
# paper's and what is ours.
#
#     ./run_yang2022.sh [options of kd.sh for every step; not --stop_stage, nor a --stage below
#                        12: the steps set them, and what is done is skipped]
#     TEACHER=hubert ./run_yang2022.sh             or wavlm, which needs S3PRL
#     TEACHER_EXP=exp/asr_mine ./run_yang2022.sh   a trained one, with our word pieces (stage 3)
#     LM_EXP=exp/lm_mine ./run_yang2022.sh         a trained language model of our word pieces;
#                                                  without one the system `lm` is left out
#     STUDENTS=streaming SYSTEMS=labelled ./run_yang2022.sh    some of them
#
# Needs network once: torchaudio (S3PRL for WavLM) downloads a checkpoint of 0.4 GB. Cost (an
# estimate of espnet_kd.bin.plan, good to a factor of two; nothing was run; GPU: A100): teacher
# 5 GPU hours, a student without KD 5, with KD 6 for each system: 50 for all of it. The
# teacher's search over 860 h of audio: 340 core hours, twice that for the system `lm`. Disk,
# beside LibriSpeech's 60 GB: 10 GB. Run it again after a kill.
set -euo pipefail

teacher=${TEACHER:-wav2vec2}
students=${STUDENTS:-nonstreaming streaming}
systems=${SYSTEMS:-labelled unlabelled ${LM_EXP:+lm}}
python=${PYTHON:-python3}
conf=conf/yang2022
search=decode
options=("$@")

exp=${TEACHER_EXP:-exp/asr_yang2022_${teacher}}
exp=${exp%/}
by= # part of the names of what a teacher other than wav2vec 2.0 taught
[ "${teacher}" = wav2vec2 ] || by=_${teacher}
[ -z "${TEACHER_EXP:-}" ] || by=_$(basename "${exp}")
config=${conf}/train_teacher.yaml
case ${teacher} in
wav2vec2) bundle=WAV2VEC2_BASE ;;
hubert) bundle=HUBERT_BASE ;;
wavlm) bundle="" config=${conf}/train_teacher_s3prl.yaml ;;
*) echo "$0: TEACHER=${teacher}: wav2vec2, hubert or wavlm" >&2 && exit 1 ;;
esac

step() { # step STUDENT TEACHER_EXP OPTION...: of run.sh
    local suffix=
    [ "$1" != streaming ] || suffix=_streaming
    ./run.sh --asr_config "${conf}/train_student${suffix}.yaml" --asr_tag "yang2022_$1" \
        --asr_stats_dir exp/asr_stats_yang2022 \
        --teacher_task asr --teacher_asr_config "" --teacher_exp "$2" --teacher_nbest 1 \
        --teacher_inference_config "${conf}/decode_teacher.yaml" --inference_tag "${search}" \
        --inference_config "${conf}/decode${suffix}.yaml" \
        --kd_config "${conf}/kd${suffix}.yaml" "${@:3}" "${options[@]}"
}
first=nonstreaming # whatever STUDENTS is: statistics are identified by what made them

# 1. Data, tokens, statistics.
step "${first}" "${exp}" --stop_stage 4

# 2. The teacher.
if [ -z "${TEACHER_EXP:-}" ]; then
    start=
    if [ -n "${bundle}" ]; then
        checkpoint=downloads/${bundle}.pth
        if [ ! -e "${checkpoint}" ]; then
            mkdir -p downloads
            # shellcheck disable=SC2086
            ${python} -c "import torch, torchaudio
model = torchaudio.pipelines.${bundle}.get_model()
torch.save(model.state_dict(), '${checkpoint}.tmp')"
            mv "${checkpoint}.tmp" "${checkpoint}"
        fi
        start="--init_param ${checkpoint}::encoder.hubert_pretrain_model.wav2vec2"
    fi
    # Samples are not normalised.
    step "${first}" "${exp}" --teacher_asr_config "${config}" --teacher_asr_args "${start}" \
        --feats_normalize none --stage 4 --stop_stage 5
fi

# 3. Its hypotheses and the KD sets. With a language model it is another teacher by name.
for system in ${systems}; do
    case ${system} in
    labelled) step "${first}" "${exp}" --kd_tag "labelled${by}" --unlabelled_set "" --stage 6 --stop_stage 8 ;;
    unlabelled) step "${first}" "${exp}" --kd_tag "unlabelled${by}" --stage 6 --stop_stage 8 ;;
    lm)
        ln -sfn "$(basename "${exp}")" "${exp}_lm"
        step "${first}" "${exp}_lm" --kd_tag "lm${by}" --stage 6 --stop_stage 8 \
            --teacher_inference_config "${conf}/decode_teacher_lm.yaml" \
            --teacher_inference_args "--lm_train_config ${LM_EXP}/config.yaml --lm_file ${LM_EXP}/valid.loss.ave.pth"
        ;;
    esac
done

# 4. Students without KD and on each KD set, decoded and scored.
for student in ${students}; do
    for system in ${systems}; do
        step "${student}" "${exp}" --kd_tag "${system}${by}" --stage 9
    done
done

# 5. A table for each student and test set: exp/yang2022_<student>[_<teacher>]_<set>.md.
# A teacher that asr.sh trained is decoded elsewhere, and left out.
for student in ${students}; do
    plain=exp/asr_yang2022_${student}
    compared=(--system teacher "${exp}" --system "${student}" "${plain}")
    for system in ${systems}; do
        compared+=(--system "${system}" "${plain}_kd_${system}${by}")
    done
    ${python} -m espnet_kd.bin.report "${compared[@]}" \
        --inference_tag "${search}" --inference_asr_model valid.loss.ave.pth \
        --teacher teacher --baseline "${student}" \
        --output "exp/yang2022_${student}${by}_{set}.md"
done
