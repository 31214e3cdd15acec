#!/usr/bin/env bash
# Makes .venv: everything that demo, test and bench need. Run again at any time; what is there already is kept.
#
# Knobs (environment variables, all optional):
#   PYTHON                a Python >= 3.10 to build .venv from            (default: the sourced ROS 2's, else the first that fits)
#   TORCH_SPEC            what pip installs for PyTorch                   (default: the CPU build where there is no NVIDIA GPU)
#   PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, HTTPS_PROXY                       (as pip knows them)
#   GEOPURIFY_NO_APT=1    never call apt-get, only say what is missing
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ROOT="$(cd "$HERE/../.." && pwd)"
VENV="$ROOT/.venv"
STAMPS="$VENV/.setup"
LOG="$ROOT/build/setup.log"
STEPS=7
MIN_FREE_MB=5000 # .venv is 3.6 GB with the CPU build of PyTorch …
CUDA_FREE_MB=11000 # … and grows by its CUDA libraries with the other one

# shellcheck disable=SC1091
. "$HERE/lib.sh"
. "$HERE/find_python.sh"
. "$HERE/system_packages.sh"
. "$HERE/python_packages.sh"

main() {
    cd "$ROOT"
    local everything
    everything="$(fingerprint "$(ros_flavour)" "$VENV" "$HERE"/*.* geopurify_interfaces setup.py setup.cfg package.xml)"
    is_done all "$everything" && exit 0

    mkdir -p build
    lock build/.setup.lock
    is_done all "$everything" && exit 0 # another make was faster
    : >"$LOG"
    refuse_other_flavour
    if ros_is_sourced; then
        say "Setting up .venv on the sourced ROS 2 ${ROS_DISTRO:-}. Details: build/setup.log"
        [ "${ROS_DISTRO:-}" = jazzy ] || say "  note: only Jazzy is tested; ROS 2 ${ROS_DISTRO:-?} may work."
    else
        say "Setting up .venv with ROS 2 Jazzy from wheels (no ROS 2 is sourced). Details: build/setup.log"
    fi

    step "Python and system packages" prepare_system
    step "Virtual environment" make_venv
    step "PyTorch" install_torch
    step "ROS 2" install_ros
    step "Libraries, tests and tools" install_libraries
    step "geopurify_interfaces (messages and services; compiles for half a minute)" build_interfaces
    step "This package" install_project

    mark_done all "$everything"
    ros_flavour >"$STAMPS/flavour"
    say "Ready: .venv (activate it with: . tools/setup/env.sh)"
}

main "$@"
