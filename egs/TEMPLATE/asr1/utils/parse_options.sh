# Source it after the defaults: turns `--some-name value` and `--some_name value` into
# some_name=value. Refuses names that have no default, and answers --help.
# shellcheck shell=bash
while [ $# -gt 0 ]; do
    case "$1" in
    --help | -h)
        printf '%s\n' "${help_message:-no help}"
        exit 0
        ;;
    --*)
        _name=${1#--}
        _name=${_name//-/_}
        if [ -z "${!_name+set}" ]; then
            echo "$0: no such option: $1 (see --help)" >&2
            exit 1
        fi
        if [ $# -lt 2 ]; then
            echo "$0: option $1 needs a value" >&2
            exit 1
        fi
        printf -v "${_name}" '%s' "$2"
        shift 2
        ;;
    *) break ;;
    esac
done
unset _name
true
