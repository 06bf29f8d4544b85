#!/usr/bin/env bash
# Build environment A, B or C in .venv-A, .venv-B or .venv-C, unless it exists already,
# and print its folder on stdout (all else goes to stderr).
#
#   A  Python 3.10, torch 1.13.1, ESPnet 202412, k2 1.23.4
#   B  Python 3.11, torch 2.8.0, ESPnet 202511, no k2
#   C  Python 3.12 or 3.13, torch 2.13.0, ESPnet 202611, no k2
#
# Usage: conf/build_env.sh [A|B|C]
#   Without a name: the newest for which a Python is found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

log() { echo "build_env: $*" >&2; }

# Is $1 a Python of version $2 that can make a virtual environment? It is run to find
# out: a pyenv shim of a Python that is not selected is on PATH like any other and
# fails, and Debian has ensurepip in a package of its own (python3-venv).
is_python() {
    [ "$("$1" -c 'import ensurepip, sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$2" ]
}

# Print the path of a working Python of version $1.
find_python() {
    local pyenv_root candidate
    pyenv_root=${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "${HOME}/.pyenv")}
    for candidate in "python$1" python3 python "${pyenv_root}/versions/$1".*/bin/python \
        "$(uv python find "$1" 2>/dev/null || true)"; do
        if [ -n "${candidate}" ] && is_python "${candidate}" "$1"; then
            command -v "${candidate}"
            return
        fi
    done
    return 1
}

declare -A pythons=([A]="3.10" [B]="3.11" [C]="3.12 3.13")
declare -A versions=(
    [A]="ESPnet 202412, torch 1.13.1" [B]="ESPnet 202511, torch 2.8.0"
    [C]="ESPnet 202611, torch 2.13.0"
)

# Sets python for environment $1, to the first of its Pythons that is found.
choose_python() {
    local version
    for version in ${pythons[$1]}; do
        ! python=$(find_python "${version}") || return 0
    done
    return 1
}

name=${1:-}
if [ -z "${name}" ]; then
    for name in C B A; do
        ! choose_python "${name}" || break
        [ "${name}" != A ] || {
            log "no Python 3.10 to 3.13 was found on PATH, in pyenv or by uv." \
                "Install one: uv python install 3.12, or pyenv install 3.12"
            exit 1
        }
    done
elif [ -z "${pythons[${name}]:-}" ]; then
    log "environment '${name}' is unknown: A, B or C"
    exit 1
elif ! choose_python "${name}"; then
    needed=${pythons[${name}]/ / or }
    log "${name} needs Python ${needed}, and none was found on PATH, in pyenv or by uv." \
        "Install one (uv python install ${needed##* }, pyenv install ${needed##* })," \
        "or leave ENV out to get the newest environment with a Python"
    exit 1
fi

venv=${PWD}/.venv-${name}
constraints=conf/constraints-${name}.txt
stamp=${venv}/espnet_kd.stamp
# What an environment was made of. Its path counts: a virtual environment that was
# copied elsewhere still points to where it was made.
made_of=$({
    echo "${venv}"
    "${python}" -VV
    cat "${constraints}" conf/k2-A.txt setup.py conf/build_env.sh
} | cksum)

# One build at a time: `make test` and `make demo` may be started side by side.
if command -v flock >/dev/null; then
    exec 9<conf
    flock 9
fi

# The stamp is written last: without it, or with another one, the build was interrupted
# or is out of date.
if [ "$(cat "${stamp}" 2>/dev/null)" != "${made_of}" ] ||
    ! "${venv}/bin/python" -c "" 2>/dev/null; then
    log "building ${venv} with ${python}; some minutes, log in .venv-${name}/build.log"
    rm -rf "${venv}"
    "${python}" -m venv "${venv}"
    # Not a later pip for A: from 24.1 on it refuses the name of k2's wheel and the
    # metadata of ci_sdr. This one knows all four Pythons.
    {
        "${venv}/bin/python" -m pip install pip==23.2.1 && {
            [ "${name}" != A ] ||
                "${venv}/bin/pip" install --no-deps --require-hashes -r conf/k2-A.txt
        } &&
            "${venv}/bin/pip" install -e ".[k2,demo,test,lint,docs]" -c "${constraints}"
    } >"${venv}/build.log" 2>&1 || {
        tail -n 30 "${venv}/build.log" >&2
        log "pip failed, the end of its log is above; the next call starts anew"
        exit 1
    }
    echo "${made_of}" >"${stamp}.new"
    mv "${stamp}.new" "${stamp}"
fi
k2=$("${venv}/bin/python" -c 'from importlib.metadata import version; print(version("k2"))' \
    2>/dev/null || true)
log "environment ${name}: $("${python}" -V), ${versions[${name}]}," \
    "$([ -n "${k2}" ] && echo "k2 ${k2}" || echo "no k2: lattices run on the torch backend")"
echo "${venv}"
