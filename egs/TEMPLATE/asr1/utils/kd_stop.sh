# How kd.sh ends at Ctrl-C and other signals; sourced by it.
# shellcheck shell=bash disable=SC2154

# kd.sh works in a process group of its own, so that a signal ends all that it started.
if [ -z "${KD_SH_JOB:-}" ]; then
    stop() { # stop CODE
        trap '' INT TERM HUP
        local group=${!:-}
        [ -n "${group}" ] || exit "$1" # nothing was started
        kill -TERM -- "-${group}" 2>/dev/null || true
        for _ in {1..50}; do
            kill -0 -- "-${group}" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-${group}" 2>/dev/null || true
        echo "$(date '+%Y-%m-%dT%H:%M:%S') (kd.sh) stopped;" \
            "the same command resumes" >&2
        exit "$1"
    }
    trap 'stop 130' INT
    trap 'stop 143' TERM
    trap 'stop 129' HUP
    set -m
    KD_SH_JOB=${here} bash "$0" "$@" </dev/null &
    set +m
    wait $! && exit || exit $?
fi
unset KD_SH_JOB
