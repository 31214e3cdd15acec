# Helpers of setup.sh: messages, steps, stamps, the lock. Sourced, not run.
# shellcheck shell=bash

STEP=0

say() { printf '%s\n' "$*"; }

# One line that says what is wrong and what to do, then the end.
fail() {
    printf '\nsetup: %s\n' "$*" >&2
    exit 1
}

# step TITLE FUNCTION: the function writes to the log; what it tells the reader goes through `detail`.
step() {
    local title=$1 started=$SECONDS
    shift
    STEP=$((STEP + 1))
    DETAIL=""
    say "[$STEP/${STEPS:?}] $title …"
    "$@"
    say "      ${DETAIL:-done} ($((SECONDS - started)) s)"
}

detail() { DETAIL="$*"; }

# Runs a command with its output in the log; on a terminal a counter shows that something is going on.
logged() {
    printf '\n$ %s\n' "$*" >>"$LOG"
    local beat="" status=0
    if [ -t 1 ]; then
        (
            trap 'exit 0' TERM
            while sleep 1; do
                kill -0 "$$" 2>/dev/null || exit 0
                printf '\r      %s \033[K' "$(tail -n 1 "$LOG" 2>/dev/null | tr -cd '[:print:]' | cut -c1-70)"
            done
        ) &
        beat=$!
    fi
    "$@" >>"$LOG" 2>&1 || status=$?
    if [ -n "$beat" ]; then
        kill "$beat" 2>/dev/null || true
        wait "$beat" 2>/dev/null || true
        printf '\r\033[K'
    fi
    return "$status"
}

# A hash over words and the content of files and folders.
fingerprint() {
    local item
    for item in "$@"; do
        if [ -d "$item" ] && [ "$item" != "$VENV" ]; then
            find "$item" -type f -not -name '*.pyc' | LC_ALL=C sort | xargs cat
        elif [ -f "$item" ]; then
            cat "$item"
        else
            printf '%s\n' "$item"
        fi
    done | sha256sum | cut -d' ' -f1
}

is_done() { [ -x "$VENV/bin/python" ] && [ "$(cat "$STAMPS/$1" 2>/dev/null)" = "$2" ]; }

mark_done() {
    mkdir -p "$STAMPS"
    printf '%s\n' "$2" >"$STAMPS/$1"
}

free_mb() { df -Pm "$ROOT" | awk 'NR == 2 {print $4}'; }

# Two makes at once would install over each other.
lock() {
    command -v flock >/dev/null || return 0
    exec 9>"$1"
    if ! flock -n 9; then
        say "Another set-up is running here; waiting for it."
        flock 9
    fi
}

ros_is_sourced() { [ "${ROS_VERSION:-2}" = 2 ] && [ -n "${ROS_DISTRO:-}" ] && [ -n "${AMENT_PREFIX_PATH:-}" ]; }

ros_flavour() { if ros_is_sourced; then printf 'sourced-%s\n' "$ROS_DISTRO"; else printf 'wheels\n'; fi; }

# Wheels under a sourced ROS 2 (or the other way round) would load each other's libraries.
refuse_other_flavour() {
    local before now
    before="$(cat "$STAMPS/flavour" 2>/dev/null || true)"
    now="$(ros_flavour)"
    [ -z "$before" ] || [ "$before" = "$now" ] ||
        fail ".venv was made for '$before', this shell is '$now'. Open a matching shell, or start over: make distclean setup"
}
