# The functions of kd.sh, sourced by it, as are kd_training.sh and kd_decoding.sh: they
# read its options and names. Here: messages, stages, what is already done, helpers.
# shellcheck shell=bash disable=SC2034,SC2154

# Messages
log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') (kd.sh) $*"; }
die() { log "Error: $*" >&2; exit 1; }
faults=()
fault() { faults+=("$*"); } # fault MESSAGE: kd.sh ends once all faults are found
refusal_in() { # refusal_in LOG: the last exception, or line, of a command that failed
    awk '/^Traceback \(most recent call last\)/ { raised = 1; next }
        raised && /^[^ \t]/ { error = $0; raised = 0 }
        /^# Ended \(code (-9|137)\)/ { error = "killed, as for lack of memory" }
        /^[^# \t]/ && !/ INFO: / { last = $0 }
        END { print error != "" ? error : last }' "$1" |
        sed -E 's/^([A-Za-z_0-9]+\.)+([A-Z][A-Za-z]+:)/\2/'
}
fail() { # fail WHAT LOG...: end with the message in the LOG of a command that failed
    local what=$1 file=$2 reason='' advice=()
    shift
    for file in "$@"; do
        [ -e "${file}" ] || continue
        reason=$(refusal_in "${file}")
        ! grep -q '^# Ended (code 0)' "${file}" && break
    done
    [[ ${reason} != UnsafeLoadRefusedError* ]] || advice=(
        "This training was begun with an ESPnet before 202609, whose checkpoints the"
        "installed one loads only when told to: if the folder is your own, put"
        "ESPNET_ALLOW_UNSAFE_TORCH_LOAD=1 before the same command")
    die "${what} failed, see ${file}${reason:+: ${reason}}" "${advice[@]}"
}
refuse_other() { # refuse_other EXP
    die "$1 holds a training with other options or data: give another --asr_tag," \
        "--kd_tag or --sparse_tag (a teacher: --teacher_exp), or delete the folder"
}

# Stages
is_selected() { # is_selected STAGE
    [ "${stage}" -le "$1" ] && [ "$1" -le "${stop_stage}" ] || return 1
    [[ ! " ${skip_stages} " =~ [[:space:]]$1[[:space:]] ]]
}
runs() { # runs STAGE WHAT: whether a stage is selected; logs what it does
    is_selected "$1" && log "Stage $1: $2"
}
check() { # check [option]: end with all faults of the selected stages, if any
    local name words=()
    for name in ${resolved}; do words+=("${name}=${!name}"); done
    ${python} -m espnet_kd.bin.check "$@" "${words[@]}" "${options_given[@]}" \
        "${faults[@]/#/fault=}" || exit
}
act() { "$@"; } # act COMMAND...: what a stage does each time
quietly() { "$@" >/dev/null; }
show() { cat "$1"; }

# A folder records the command that began it (.command) and that it ended (.done).
key_of() { # key_of "FILE..." WORD...: a command's words and checksums of what it reads
    local file text="${*:2}"
    echo "${text//"${python} "/}"
    for file in $1 $(printf '%s\n' "${@:2}" | grep '\.yaml$' || true); do
        [ ! -f "${file}" ] || cksum "${file}"
    done
}
is_done() { # is_done DIR KEY
    [ -e "$1/.done" ] && [ "$(cat "$1/.command" 2>/dev/null)" = "$2" ] &&
        log "  done before: $1"
}
begin() { # begin DIR KEY
    mkdir -p "$1"
    rm -f "$1/.done"
    echo "$2" >"$1/.command"
}
end() { echo "${2:-}" >"$1/.done"; } # end DIR [NOTE]
once() { # once DIR "FILE..." COMMAND...: unless it has ended in DIR from these FILEs
    local dir=$1 key
    key=$(key_of "${@:2}")
    is_done "${dir}" "${key}" && return
    begin "${dir}" "${key}"
    "${@:3}" || return # set -e does not hold within a condition
    end "${dir}"
}
# Likewise a hidden file beside a file records what it was made from.
is_current() { # is_current FILE KEY
    [ -e "$1" ] && [ "$(cat "${1%/*}/.${1##*/}" 2>/dev/null)" = "$2" ]
}
is_ours() { [ -e "$1/.command" ] || [ -e "$1/.done" ]; } # is_ours DIR: begun by kd.sh
is_here() { # is_here DIR: begun by kd.sh in this recipe
    is_ours "$1" && [[ ($1 != ../* && $1 != /*) || $1 == "${PWD}"/* ]]
}
may_write() { # may_write DIR FILE: not where DIR holds a FILE that asr.sh made
    is_ours "$1" || [ ! -e "$2" ] && return
    log "  $2 was not made by kd.sh: left as it is"
    return 1
}

# Names
name_of() { basename "$1" .yaml; }
stem_of() { echo "$1" | sed -e 's/\//_/g' -e 's/\.[^.]*$//'; }
tag_of_args() { echo "$1" | sed -e 's/--/\_/g' -e 's/[ |=/]//g'; } # tag_of_args ARGS
tag_of() { # tag_of CONFIG ARGS
    local tag
    tag="$(name_of "$1")_${feats_type}_${_lang}${token_tag}"
    [ -z "$2" ] || tag+=$(tag_of_args "$2")
    [ -z "${speed_perturb_factors}" ] || tag+=_sp
    echo "${tag}"
}
place_of() { # place_of FOLDER: where we put what a model of another recipe decoded
    local name=${1%/}
    name=${name#"${expdir}"/}
    name=${name//..\//}
    name=${name#/}
    echo "${expdir}/teacher_decode/${name//\//_}"
}
report_of() { echo "${report_dir}/report_${1//\//_}"; } # report_of SET

# What files contain
frontend_of() { # frontend_of CONFIG
    [ ! -f "$1" ] || awk '/^[a-z]/ { on = /^frontend/ } on' "$1"
}
task_of() { # task_of TEACHER: of a trained one, by its configuration
    if [ ! -e "$1/config.yaml" ]; then
        echo "${teacher_task:-${asr_task}}"
    elif grep -q '^joint_network_conf' "$1/config.yaml"; then
        echo asr_transducer
    else
        echo asr
    fi
}
tables_of() { # tables_of SET...: files that identify a formatted set
    local set
    for set in "$@"; do
        printf "${data_feats}/${set}/%s\n" \
            .command wav.scp text utt2num_samples kd_weight
    done
}
data_of() { # data_of train|valid DIR: ESPnet's options for a folder's audio and text
    local option=--$1_data_path_and_name_and_type type=sound
    # kaldi_ark reads archives, and files among them.
    ! grep -qsE '\.ark:[0-9]+$' "$2/wav.scp" || type=kaldi_ark
    echo "${option} $2/wav.scp,speech,${type}"
    [ ! -e "$2/text" ] || echo "${option} $2/text,text,text"
    [ ! -e "$2/kd_weight" ] || echo "${option} $2/kd_weight,kd_weight,text_float"
}

# Jobs
lines_of() { grep -c '' "$1" || true; }
jobs_for() { # jobs_for FILE MOST: no more jobs than utterances
    local lines
    lines=$(lines_of "$1")
    [ "${lines}" -gt 0 ] || die "$1 is empty"
    echo $((lines < $2 ? lines : $2))
}
split_keys() { # split_keys FILE DIR JOBS: FILE in equal parts, DIR/keys.N.scp
    mkdir -p "$2"
    rm -f "$2"/keys.*.scp
    awk -v jobs="$3" -v lines="$(lines_of "$1")" -v keys="$2/keys." \
        '{ print > (keys (int((NR - 1) * jobs / lines) + 1) ".scp") }' "$1"
}
