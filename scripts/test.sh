#!/usr/bin/env bash
# Runs every test and every doctest of the workspace, on real servers too; unpacks the servers under target/, and as root installs protoc on
# the machine.
#
# usage: scripts/test.sh [ARGUMENTS FOR cargo test]
set -euo pipefail

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    exit 0
fi
cd "$(dirname "$0")/.."
command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.88 or later" >&2; exit 1; }
type -P kill >/dev/null || { echo "the program kill is missing: apt-get install procps" >&2; exit 1; }
./scripts/install-protoc.sh
./scripts/install-servers.sh
# Most tests wait for a server more than they compute.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) * 2))}
exec cargo test --workspace --all-features "$@"
