#!/usr/bin/env bash
# Measures what dlock costs beside bare clients and other lock clients; unpacks the servers and valgrind under target/, and as root installs
# protoc on the machine.
#
# usage: scripts/bench.sh [ARGUMENTS FOR dlock-bench]
set -euo pipefail

cd "$(dirname "$0")/.."
command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.88 or later" >&2; exit 1; }
./scripts/install-protoc.sh
./scripts/install-servers.sh
./scripts/install-valgrind.sh
exec cargo run --release -p dlock-bench -- "$@"
