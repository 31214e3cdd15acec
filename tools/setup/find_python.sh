# Which Python .venv is built from. Sourced by setup.sh.
# shellcheck shell=bash

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2])' >/dev/null 2>&1; }

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

# Prints the interpreter's path, or returns 1. A python3.x on PATH may be a shim that refuses to run: so each is tried.
# 3.13 comes last: Open3D has no well-measured wheel for it.
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" && command -v "$PYTHON" && return 0
        return 1
    fi
    if ros_is_sourced; then
        for candidate in python3 /usr/bin/python3; do
            fits "$candidate" && "$candidate" -c 'import rclpy' >/dev/null 2>&1 && command -v "$candidate" && return 0
        done
        return 1
    fi
    if fits python3 && ! is_newer_than_wheels python3; then
        command -v python3
        return 0
    fi
    for candidate in python3.12 python3.11 python3.10 /usr/bin/python3 python3; do
        fits "$candidate" && command -v "$candidate" && return 0
    done
    return 1
}

is_newer_than_wheels() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

no_python() {
    local found
    if [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON is $(version_of "$PYTHON" || echo 'not a Python that runs'); give one of version 3.10 or newer."
    fi
    if ros_is_sourced; then
        fail "ROS 2 $ROS_DISTRO is sourced but no python3 here can import rclpy; install ros-$ROS_DISTRO-ros-base, or open a shell without ROS 2."
    fi
    found="$(version_of python3 || true)"
    fail "Python 3.10 or newer is needed, found ${found:-none}. Install one (for example the packages python3.11 python3.11-venv python3.11-dev) or name it: make setup PYTHON=/path/to/python3.11"
}
