#!/usr/bin/env bash
# ESPnet 202611, recipes of its source distribution on PyPI, each started as in its README
# (./run.sh), before any data are needed:
#
#   1. mini_an4 (and every other recipe): the distribution has lost links to folders, so
#      that scripts/, pyscripts/, steps/ and utils/ are missing in all recipes but TEMPLATE.
#   2. voices: run.sh reads `test_set`, which it has named `test_sets`.
#   3. seame: its first call, ./asr.sh --stage 1 --stop_stage 1, lacks --train_set, which
#      asr.sh requires for every stage.
#   4. coraal: path.sh reads local/path.sh, which is missing (in the repository too).
#
# 2 to 4 are the same in the repository. Prints the error of each; fails if one differs.
# Needs pip and 150 MB in a temporary folder; ESPnet is not installed.
set -euo pipefail

release=202611
work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT
python3 -m pip download -q --no-deps --no-binary :all: --ignore-requires-python \
    -d "${work}" "espnet==${release}" >&2
tar -xzf "${work}/espnet-${release}.tar.gz" -C "${work}"
cd "${work}/espnet-${release}/egs2"

failed=0
ends_with() { # ends_with RECIPE TEXT: the last line of its run.sh
    local end
    end=$(cd "$1/asr1" && bash ./run.sh 2>&1 </dev/null | tail -n 1) || true
    echo "ESPnet ${release}, egs2/$1/asr1: ${end}"
    [[ ${end} == *"$2"* ]] || { echo "  expected: $2" && failed=1; }
}

ends_with mini_an4 "scripts/utils/print_args.sh: No such file or directory"
for recipe in voices seame coraal; do # with the links, as they are in the repository
    for name in pyscripts scripts steps utils; do
        ln -s "../../TEMPLATE/asr1/${name}" "${recipe}/asr1/"
    done
done
ends_with voices "test_set: unbound variable"
ends_with seame "Error: --train_set is required"
ends_with coraal "local/path.sh: No such file or directory"
exit "${failed}"
