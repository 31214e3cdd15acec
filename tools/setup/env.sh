# Source this in a shell (or a Makefile recipe): activates .venv and lets ROS 2 find what was built into it.
# shellcheck shell=bash
_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/../.." && pwd)"
. "$_root/.venv/bin/activate"
case ":${AMENT_PREFIX_PATH:-}:" in
*":$VIRTUAL_ENV:"*) ;;
*) export AMENT_PREFIX_PATH="$VIRTUAL_ENV${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}" ;;
esac
# The wheels set the library path themselves; a ROS 2 installation needs to be told about ours.
if [ -n "${ROS_DISTRO:-}" ]; then
    export LD_LIBRARY_PATH="$VIRTUAL_ENV/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
unset _root
