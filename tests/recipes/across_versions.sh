#!/usr/bin/env bash
# A teacher trained with ESPnet 202412 (environment A) labels audio and teaches a student
# under 202611 (environment C), and stock 202611 decodes the student and its export without
# this package; stock 202412 decodes the export, too. Task asr with conv2d subsampling,
# whose weights have other names in the two versions.
#
# Usage: make across    builds both environments if missing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

old=$(conf/build_env.sh A)/bin/python
new=$(conf/build_env.sh C)/bin/python
work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT
cp -rL egs/mini/asr1 "${work}/recipe"
rm -rf "${work}"/recipe/{data,dump,exp}
export PYTHONPATH=${PWD} OMP_NUM_THREADS=1
cd "${work}/recipe"

config() { # config WIDTH: a hybrid model
    cat <<CONFIG
frontend_conf: {n_fft: 256, win_length: 200, hop_length: 100, n_mels: 40}
encoder: conformer
encoder_conf: {output_size: $1, attention_heads: 2, linear_units: $1, num_blocks: 1,
    input_layer: conv2d, macaron_style: true, use_cnn_module: true, cnn_module_kernel: 7,
    rel_pos_type: latest, pos_enc_layer_type: rel_pos, selfattention_layer_type: rel_selfattn}
decoder: transformer
decoder_conf: {attention_heads: 2, linear_units: $1, num_blocks: 1}
model_conf: {ctc_weight: 0.5}
batch_type: numel
batch_bins: 250000
max_epoch: 1
num_iters_per_epoch: 8
optim: adam
optim_conf: {lr: 0.002}
best_model_criterion: [[valid, loss, min]]
keep_nbest_models: 1
num_workers: 0
num_att_plot: 0
CONFIG
}
config 32 >conf/teacher.yaml
config 16 >conf/student.yaml
printf 'beam_size: 3\nmaxlenratio: 0.3\nctc_weight: 0.5\n' >conf/search.yaml
recipe() { # recipe PYTHON OPTION...: the demo in small, with these models
    DEMO_SIZE=small PYTHON=$1 ./run.sh --asr_task asr --asr_config conf/student.yaml \
        --teacher_asr_config conf/teacher.yaml --kd_config conf/kd/essence.yaml \
        --kd_set_args "--labelled_targets both" \
        --inference_config conf/search.yaml --teacher_inference_config conf/search.yaml \
        --teacher_asr_args "" --asr_args "" "${@:2}"
}
say() { echo "across_versions: $*"; }
version_of() { sed -n "s/^version: '\(.*\)'/\1/p" "$1/config.yaml"; }
scores() { cat exp/teacher_decode/*/valid/hypotheses.*.jsonl; }

say "teacher by $("${old}" -m espnet_kd.bin.doctor | sed -n 's/^ok *espnet  */ESPnet /p')"
recipe "${old}" --stop_stage 6 >"${work}/old.log" 2>&1 || { cat "${work}/old.log"; exit 1; }
teacher=$(ls -d exp/asr_teacher_*) student=exp/asr_student_raw_bpe40_kd_essence
[ "$(version_of "${teacher}")" = 202412 ]
scores >"${work}/old.jsonl"
rm -rf exp/teacher_decode

say "its n-best lists and its student by $("${new}" -m espnet_kd.bin.doctor | sed -n 's/^ok *espnet  */ESPnet /p')"
recipe "${new}" --stage 6 >"${work}/new.log" 2>&1 || { cat "${work}/new.log"; exit 1; }
[ "$(version_of "${student}")" = 202611 ]
scores >"${work}/new.jsonl"
"${new}" - "${work}/old.jsonl" "${work}/new.jsonl" <<'PYTHON'
import sys

from espnet_kd.targets.hypotheses import hypotheses_of, read_cuts

old, new = ({c.id: hypotheses_of(c) for c in read_cuts(path)} for path in sys.argv[1:])
assert old.keys() == new.keys() and len(old) > 10, (len(old), len(new))
pairs = [pair for name in old for pair in zip(old[name], new[name], strict=True)]
assert all(one.text == other.text for one, other in pairs)
worst = max(abs(one.score - other.score) for one, other in pairs)
assert worst < 1e-3, worst
print(f"across_versions: {len(pairs)} hypotheses equal in both, scores within {worst:.1e}")
PYTHON

stock() { # stock PYTHON FOLDER OUTPUT: ESPnet's own inference without this package
    "$1" - --batch_size 1 --ngpu 0 --config conf/search.yaml --output_dir "$3" \
        --asr_train_config "$2/config.yaml" --asr_model_file "$2/valid.loss.ave.pth" \
        --data_path_and_name_and_type dump/raw/test/wav.scp,speech,sound >"$3.log" 2>&1 \
        <<'PYTHON' || { tail -n 20 "$3.log"; exit 1; }
import sys

sys.modules["espnet_kd"] = None
from espnet2.bin.asr_inference import main

main()
PYTHON
}
say "the student by stock ESPnet 202611, its export by both"
"${new}" -m espnet_kd.bin.export --exp "${student}" --model_file valid.loss.ave.pth \
    --output_dir "${work}/export" >/dev/null
stock "${new}" "${student}" "${work}/stock"
stock "${new}" "${work}/export" "${work}/export_new"
stock "${old}" "${work}/export" "${work}/export_old"
sort "${student}"/*/test/text >"${work}/kd.text"
for result in stock export_new export_old; do
    sort "${work}/${result}/1best_recog/text" | cmp - "${work}/kd.text"
done
say "$(wc -l <"${work}/kd.text") utterances decoded alike"
