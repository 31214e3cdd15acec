# What the system itself must bring: a compiler, CMake, Python's headers, two libraries of Open3D's. Sourced by setup.sh.
# shellcheck shell=bash

has() { command -v "$1" >/dev/null 2>&1; }

can_load() { "$PYTHON_FOUND" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" >/dev/null 2>&1; }

# Debian's names of the missing packages, one a line. $PYTHON_FOUND is the interpreter, or empty where there is none.
missing_packages() {
    has cc && has c++ && has make || echo build-essential
    has cmake || echo cmake
    has ninja || echo ninja-build
    if [ -z "$PYTHON_FOUND" ]; then
        printf '%s\n' python3 python3-venv python3-dev libgl1 libx11-6
        return 0
    fi
    local name
    name="$("$PYTHON_FOUND" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')"
    "$PYTHON_FOUND" -c 'import ensurepip, venv' >/dev/null 2>&1 || echo "$name-venv"
    "$PYTHON_FOUND" -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' \
        >/dev/null 2>&1 || echo "$name-dev"
    can_load libGL.so.1 || echo libgl1      # Open3D links these four;
    can_load libX11.so.6 || echo libx11-6   # slim images lack them
    can_load libgomp.so.1 || echo libgomp1
    can_load libudev.so.1 || echo libudev1
    if is_newer_than_wheels "$PYTHON_FOUND"; then
        can_load libusb-1.0.so.0 || echo libusb-1.0-0 # Open3D 0.20
    fi
    return 0
}

# The command prefix that may install packages: "" for root, "sudo -n" where it asks no password; returns 1 without either.
apt_prefix() {
    [ -z "${GEOPURIFY_NO_APT:-}" ] && has apt-get || return 1
    if [ "$(id -u)" = 0 ]; then
        echo env
    elif has sudo && sudo -n true >/dev/null 2>&1; then
        echo "sudo -n env"
    else
        return 1
    fi
}

install_packages() {
    local prefix packages="$*"
    if ! prefix="$(apt_prefix)"; then
        fail "missing system packages. Run this line, then make setup again:
  sudo apt-get update && sudo apt-get install -y $packages"
    fi
    say "      installing with apt-get: $packages"
    # shellcheck disable=SC2086
    logged $prefix DEBIAN_FRONTEND=noninteractive apt-get update -q ||
        say "      apt-get update failed; trying with the lists that are there"
    # shellcheck disable=SC2086
    logged $prefix DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages ||
        fail "apt-get could not install: $packages. Check the network and the end of build/setup.log, then run make setup again."
}

prepare_system() {
    local missing
    PYTHON_FOUND="$(find_python || true)"
    [ -n "$PYTHON_FOUND" ] || has python3 || [ -n "${PYTHON:-}" ] || ros_is_sourced || NO_PYTHON_AT_ALL=1
    [ -n "$PYTHON_FOUND" ] || [ -n "${NO_PYTHON_AT_ALL:-}" ] || no_python
    missing="$(missing_packages | sort -u | tr '\n' ' ')"
    if [ -n "${missing// /}" ]; then
        # shellcheck disable=SC2086
        install_packages ${missing% }
        PYTHON_FOUND="$(find_python)" || no_python
        missing="$(missing_packages | sort -u | tr '\n' ' ')"
        [ -z "${missing// /}" ] || fail "still missing after apt-get: ${missing% }. Install these (or what provides them for $PYTHON_FOUND) and run make setup again."
    fi
    [ -x "$VENV/bin/python" ] || [ "$(free_mb)" -ge "$MIN_FREE_MB" ] ||
        fail "only $(free_mb) MB are free here and .venv needs about $MIN_FREE_MB; make room and run make setup again."
    detail "Python $(version_of "$PYTHON_FOUND") ($PYTHON_FOUND), compiler, CMake, libraries: all there"
}
