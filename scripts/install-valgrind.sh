#!/usr/bin/env bash
# Makes sure of valgrind, which counts instructions, and of its tool callgrind: unpacks it under target/valgrind, from the Debian of this machine.
# Installs nothing on the machine. Does nothing if valgrind is on PATH or already unpacked.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
unpacked=${CARGO_TARGET_DIR:-$root/target}/valgrind
# shellcheck source=scripts/unpack.sh
. "$root/scripts/unpack.sh"

if command -v valgrind >/dev/null || [ -x "$unpacked/usr/bin/valgrind" ]; then
    exit 0
fi
# shellcheck source=/dev/null
suite=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}") || true
unpack "$unpacked" "$suite" "install valgrind with the system's package manager" valgrind
VALGRIND_LIB=$unpacked/usr/libexec/valgrind "$unpacked/usr/bin/valgrind" --version
