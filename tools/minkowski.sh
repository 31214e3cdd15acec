#!/usr/bin/env bash
# Puts MinkowskiEngine 0.5.4 into out/minkowski/site, for comparing with it; .venv is left as it is.
#
# Knobs (environment variables, all optional):
#   MINKOWSKI_WHEEL   a wheel built earlier for this Python and PyTorch (else one is compiled: 15 minutes on two cores)
#   MAX_JOBS          compilers at a time                               (default: the number of cores)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VERSION=0.5.4
HOME_DIR=out/minkowski
PYTHON=.venv/bin/python
LOG="$HOME_DIR/build.log"

say() { printf '%s\n' "$*"; }

fail() {
    printf 'test-minkowski: %s\n' "$*" >&2
    exit 1
}

pip() { "$PYTHON" -m pip --disable-pip-version-check --no-input "$@" >>"$LOG" 2>&1; }

# The C++ objects fit one PyTorch only.
built_for() { "$PYTHON" -c 'import sys, torch; print(sys.version_info[:2], torch.__version__)'; }

build_wheel() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info >= (3, 12))' ||
        fail "its setup.py needs numpy.distutils, which Python 3.12 no longer has. Use Python 3.10 or 3.11."
    [ -e /usr/include/x86_64-linux-gnu/cblas.h ] || [ -n "$(find /usr/include -name cblas.h -print -quit)" ] ||
        fail "OpenBLAS is missing: apt-get install libopenblas-dev build-essential"
    say "Compiling MinkowskiEngine $VERSION (about 15 minutes on two cores). Details: $LOG"
    pip install --upgrade --target "$HOME_DIR/tools" "setuptools<81" wheel ninja || fail "pip failed; see $LOG"
    local tools="$PWD/$HOME_DIR/tools"
    PYTHONPATH="$tools" PATH="$tools/bin:$PWD/.venv/bin:$PATH" CPU_ONLY=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}" \
        pip wheel --no-build-isolation --no-deps --wheel-dir "$HOME_DIR/wheels" "MinkowskiEngine==$VERSION" ||
        fail "it did not compile; see the end of $LOG"
}

main() {
    mkdir -p "$HOME_DIR"
    local wanted
    wanted="$(built_for) ${MINKOWSKI_WHEEL:-}"
    if [ -d "$HOME_DIR/site/MinkowskiEngine" ] && [ "$(cat "$HOME_DIR/built_for" 2>/dev/null)" = "$wanted" ]; then
        exit 0
    fi
    [ -z "${MINKOWSKI_WHEEL:-}" ] || [ -f "$MINKOWSKI_WHEEL" ] || fail "MINKOWSKI_WHEEL is not a file: $MINKOWSKI_WHEEL"
    : >"$LOG"
    rm -rf "$HOME_DIR/site" "$HOME_DIR/wheels"
    local wheel=${MINKOWSKI_WHEEL:-}
    if [ -z "$wheel" ]; then
        build_wheel
        wheel="$(find "$HOME_DIR/wheels" -name 'minkowskiengine-*.whl' -print -quit)"
    fi
    pip install --no-deps --target "$HOME_DIR/site" "$wheel" || fail "the wheel cannot be installed; see $LOG"
    printf '%s\n' "$wanted" >"$HOME_DIR/built_for"
    say "MinkowskiEngine $VERSION is in $HOME_DIR/site"
}

main "$@"
