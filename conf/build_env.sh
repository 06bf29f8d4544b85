#!/usr/bin/env bash
# Build environment A or B in .venv-A or .venv-B, unless it stands already, and print its
# folder on stdout (all else goes to stderr).
#
#   A  Python 3.10, torch 1.13.1, ESPnet 202412, k2 1.23.4
#   B  Python 3.11 (else 3.12, untested), torch 2.8.0, ESPnet 202511, no k2
#
# Usage: conf/build_env.sh [A|B]     without a name: A where a Python 3.10 is found, else B
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

log() { echo "build_env: $*" >&2; }

# Is $1 a Python of version $2? It is run to find out: a pyenv shim of a Python that is
# not selected lies on PATH like any other and fails.
is_python() {
    [ "$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$2" ]
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

name=${1:-}
case "${name}" in
    A) python=$(find_python 3.10) || {
        log "A needs Python 3.10, and none was found on PATH, in pyenv or by uv." \
            "Install one (uv python install 3.10, pyenv install 3.10) or take ENV=B."
        exit 1
    } ;;
    B | "")
        if [ -z "${name}" ] && python=$(find_python 3.10); then
            name=A
        else
            python=$(find_python 3.11 || find_python 3.12) || {
                log "no Python 3.10, 3.11 or 3.12 was found on PATH, in pyenv or by uv."
                exit 1
            }
            is_python "${python}" 3.11 ||
                log "no Python 3.11, so 3.12: the versions were not tested with it"
            [ -n "${name}" ] || log "no Python 3.10, so k2 is absent (environment B):" \
                "lattices run on the torch backend, k2-pruned students are not available"
            name=B
        fi
        ;;
    *)
        log "environment '${name}' is unknown: A or B"
        exit 1
        ;;
esac

venv=${PWD}/.venv-${name}
constraints=conf/constraints-${name}.txt
stamp=${venv}/espnet_kd.stamp
# What an environment was made of. Its place counts: a virtual environment that was
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

# The stamp is written last: without it, or with another one, the build was cut off or is
# out of date.
if [ "$(cat "${stamp}" 2>/dev/null)" != "${made_of}" ] ||
    ! "${venv}/bin/python" -c "" 2>/dev/null; then
    log "building ${venv} with ${python}; some minutes, log in .venv-${name}/build.log"
    rm -rf "${venv}"
    "${python}" -m venv "${venv}"
    # Not a later pip: from 24.1 on it refuses the name of k2's wheel and the metadata of
    # ci_sdr. One pip for all also makes one way to build what comes as source.
    {
        "${venv}/bin/python" -m pip install pip==23.2.1 && {
            [ "${name}" != A ] ||
                "${venv}/bin/pip" install --no-deps --require-hashes -r conf/k2-A.txt
        } &&
            "${venv}/bin/pip" install -e ".[k2,demo,test,lint,docs]" -c "${constraints}"
    } >"${venv}/build.log" 2>&1 || {
        tail -n 30 "${venv}/build.log" >&2
        log "pip failed, the end of its log is above; the next call starts afresh"
        exit 1
    }
    echo "${made_of}" >"${stamp}.new"
    mv "${stamp}.new" "${stamp}"
    log "environment ${name} is ready"
fi
echo "${venv}"
