# The virtual environment and what goes into it. Sourced by setup.sh.
# shellcheck shell=bash

# Known-good CPU and GPU version; its CPU build is called 2.13.0+cpu where an index offers it.
TORCH_VERSION=2.13.0

pip_install() {
    local from
    from="$(($(wc -l <"$LOG") + 1))"
    logged "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --retries 3 "$@" && return 0
    explain_pip_failure "$(tail -n "+$from" "$LOG")"
}

explain_pip_failure() {
    local unreachable="no Python package index can be reached. Connect to the network (proxy: export HTTPS_PROXY=…; own mirror: export PIP_INDEX_URL=…) and run make setup again."
    case "$1" in
    *"No space left on device"*)
        fail "the disk is full; .venv needs about $MIN_FREE_MB MB. Make room and run make setup again." ;;
    *"Temporary failure in name resolution"* | *"Name or service not known"* | *NameResolutionError* | *NewConnectionError* | \
        *ConnectTimeout* | *"Network is unreachable"* | *"Connection refused"* | *ProxyError* | *"timed out"* | *"Connection reset"*)
        fail "$unreachable" ;;
    *"No matching distribution found for ros-"*)
        fail "no ROS 2 wheels for $(uname -m) and Python $(version_of "$VENV/bin/python"). Install ROS 2 Jazzy, source it and run make distclean setup." ;;
    *"from versions: none"*)
        fail "$unreachable" ;;
    *)
        fail "pip failed: $(grep -m 1 '^ERROR' <<<"$1" || echo 'see the log'). All of it: build/setup.log" ;;
    esac
}

make_venv() {
    local options=()
    ros_is_sourced && options+=(--system-site-packages)
    if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        fits "$VENV/bin/python" || fail ".venv holds Python $(version_of "$VENV/bin/python"); start over: make distclean setup"
        detail "keeping the one that is there"
        return 0
    fi
    # Half made, or its Python has gone: --clear replaces only what nobody can use.
    [ ! -e "$VENV" ] || options+=(--clear)
    logged "$PYTHON_FOUND" -m venv "${options[@]}" "$VENV" || fail "python -m venv failed; see the end of build/setup.log"
    logged "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --retries 3 --upgrade pip ||
        say "      (kept the bundled pip)"
}

torch_installed() { "$VENV/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null; }

# The default index of Linux carries the CUDA build; without a GPU that would be gigabytes for nothing.
install_torch() {
    if [ -n "$(torch_installed)" ] && [ -z "${TORCH_SPEC:-}" ]; then
        detail "keeping $(torch_installed)"
        return 0
    fi
    local log_from
    if [ -n "${TORCH_SPEC:-}" ]; then
        # shellcheck disable=SC2086
        pip_install $TORCH_SPEC
    elif has nvidia-smi || [ -e /proc/driver/nvidia/version ]; then
        pip_install "torch==$TORCH_VERSION"
    elif ! logged "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --retries 3 \
        "torch==$TORCH_VERSION+cpu"; then
        log_from="$(tail -n 30 "$LOG")"
        # "from versions: none" is what pip says when it saw no index at all.
        case "$log_from" in
        *"from versions: none"*) explain_pip_failure "$log_from" ;;
        *"No matching distribution"*"+cpu"*) ;;
        *) explain_pip_failure "$log_from" ;;
        esac
        say "      the package index has no CPU-only PyTorch: taking its default build, which may bring some GB of CUDA libraries."
        say "      (CONTRIBUTING.md, 'A smaller PyTorch', says how to avoid that)"
        [ "$(free_mb)" -ge "$CUDA_FREE_MB" ] || fail "only $(free_mb) MB are free here, that build needs about $CUDA_FREE_MB. See CONTRIBUTING.md, 'A smaller PyTorch'."
        pip_install "torch==$TORCH_VERSION"
    fi
    detail "torch $(torch_installed)"
}

# A sourced ROS 2 was compiled against the system's numpy 1, so numpy 2 stays out there.
constraints() {
    if ros_is_sourced; then
        grep -v '^numpy' "$HERE/constraints.txt" >build/constraints.txt
        echo 'numpy<2' >>build/constraints.txt
    else
        cp "$HERE/constraints.txt" build/constraints.txt
    fi
    echo build/constraints.txt
}

install_ros() {
    if ros_is_sourced; then
        detail "using $(printf '%s' "$AMENT_PREFIX_PATH" | tr ':' ' ')"
        return 0
    fi
    pip_install -c "$(constraints)" -r "$HERE/requirements-ros.txt"
    detail "ROS 2 Jazzy wheels"
}

install_libraries() {
    pip_install -c "$(constraints)" -r "$HERE/requirements-core.txt" -r "$HERE/requirements-training.txt" \
        -r "$HERE/requirements-dev.txt"
    if ! ros_is_sourced; then
        logged "$VENV/bin/python" "$HERE/relocate_wheels.py" || fail "the wheels could not be mended; see the end of build/setup.log"
    fi
}

# Standard CMake, installed into .venv: its lib/ and site-packages/ are where the wheels look anyway.
build_interfaces() {
    local wanted prefix="$VENV"
    wanted="$(fingerprint "$(ros_flavour)" geopurify_interfaces "$HERE/requirements-ros.txt" "$HERE/relocate_wheels.py")"
    if is_done interfaces "$wanted"; then
        detail "unchanged"
        return 0
    fi
    ros_is_sourced && prefix="$VENV;${AMENT_PREFIX_PATH//:/;}"
    local build=build/.setup-interfaces # not colcon's build/geopurify_interfaces: its cache would name the wrong prefix
    rm -rf "$build"
    { logged in_venv cmake -S geopurify_interfaces -B "$build" -G Ninja -DBUILD_TESTING=OFF \
        -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_INSTALL_PREFIX="$VENV" \
        -DPython3_EXECUTABLE="$VENV/bin/python" &&
        logged in_venv cmake --build "$build" --target install; } ||
        fail "geopurify_interfaces could not be built: $(grep -m 1 -i 'error' build/setup.log || true) (all of it: build/setup.log)"
    mark_done interfaces "$wanted"
}

in_venv() {
    env VIRTUAL_ENV="$VENV" PATH="$VENV/bin:$PATH" \
        AMENT_PREFIX_PATH="$VENV${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}" "$@"
}

# Editable, as a plain path entry: new modules are found without installing again. The ament index gets links, so that
# `ros2 run`, `ros2 launch` and get_package_share_directory find the package as after a colcon build.
install_project() {
    local item
    pip_install --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
    mkdir -p "$VENV/share/ament_index/resource_index/packages" "$VENV/share/geopurify_ros" "$VENV/lib/geopurify_ros"
    : >"$VENV/share/ament_index/resource_index/packages/geopurify_ros"
    for item in package.xml launch config; do ln -sfn "$ROOT/$item" "$VENV/share/geopurify_ros/$item"; done
    for item in mapping_node replay_node; do ln -sfn "$VENV/bin/$item" "$VENV/lib/geopurify_ros/$item"; done
}
