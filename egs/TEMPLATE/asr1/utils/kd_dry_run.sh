# With --dry_run true kd.sh goes through its stages with these functions in place of
# those with the same names: they check, and neither run nor write anything.
# shellcheck shell=bash disable=SC2034,SC2154

declare -A states=() # of each selected stage: "done" or "will run"
now=                 # the current stage
log() { :; }
die() { fault "$*"; }
runs() { # runs STAGE
    is_selected "$1" || return
    now=$1
    states[$1]="done"
}
act() { states[${now}]="will run"; }
begin() { act; }
end() { :; }
once() { is_done "$1" "$(key_of "${@:2}")" || act; }
split_tables() { :; }
launch() { :; }
decode_with_teacher() { :; }
score_as_asr_sh() { :; }
show() { :; }
preset_options() { # a preset that cannot be read is a fault that the check finds
    ${python} -m espnet_kd.bin.preset options --kd_config "${kd_config}" 2>/dev/null ||
        true
}
configure() { # the configuration goes into a temporary file
    local new
    new=$(mktemp)
    if ! ${python} -m espnet_kd.bin.preset "$2" --asr_config "$3" --kd_config "$4" \
        --output_file "${new}" "${@:5}" 2>/dev/null; then
        act # its input does not exist yet, or is a fault that the check finds
    elif ! cmp -s "${new}" "$1/train.yaml"; then
        act
        [ ! -e "$1/checkpoint.pth" ] || refuse_other "$1"
    fi
    rm "${new}"
}
find_trained() { # those that an earlier stage will train have nothing to decode yet
    local name task exp model system all made_in
    [ "${states[12]:-done}" = "done" ] || act
    mapfile -t all < <(systems)
    trained=()
    for system in "${all[@]}"; do
        read -r name task exp model <<<"${system}"
        case ${name} in
        teacher*) made_in=5 ;;
        student) made_in=9 ;;
        student+KD) made_in=10 ;;
        sparse) made_in=11 ;;
        esac
        if [ -e "${exp}/${model}" ]; then
            trained+=("${system}")
        elif is_selected "${made_in}"; then
            act
        fi
    done
}
show_plan() { # end with the table of the stages, and all faults
    local number words=()
    for number in "${!states[@]}"; do
        words+=("state=${number} ${states[${number}]}")
    done
    check --dry_run "${words[@]}"
    exit
}
