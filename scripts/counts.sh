#!/usr/bin/env bash
# Counts what dlock itself costs in instructions and allocations, and fails if that is not what bench/counts/baseline.json says.
#
# usage: scripts/counts.sh [--record | --print | --of COMMIT]
#
# --record writes what is counted into that file, --print only says it. --of says it of another commit, counted in the same way with the
# toolchain and the dependencies of now.
set -euo pipefail

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0"; }

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
# The same folder wherever cargo is run.
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export CARGO_TARGET_DIR

# of COMMIT: counts another commit's code with the counters of this one.
of() {
    local tree
    tree=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "git -C '$root' worktree remove --force '$tree' || rm -rf '$tree'" EXIT
    git worktree add --quiet --detach "$tree" "$1"
    rm -rf "$tree/bench/counts"
    mkdir -p "$tree/bench"
    cp -r bench/counts "$tree/bench/counts"
    cp Cargo.lock "$tree/Cargo.lock"
    cd "$tree"
    # What the counters need of the workspace, where it is not there yet.
    grep -q '"bench/counts"' Cargo.toml || sed -i 's|^members = \[|&"bench/counts", |' Cargo.toml
    grep -q '^stats_alloc = ' Cargo.toml || sed -i "/^\[workspace.dependencies\]/a $(grep '^stats_alloc = ' "$root/Cargo.toml")" Cargo.toml
    cargo run --quiet --release -p dlock-counts -- --print
}

case "${1:-}" in
    --of) ./scripts/install-valgrind.sh && of "${2:?which commit?}" ;;
    "" | --record | --print) ./scripts/install-valgrind.sh && cargo run --quiet --release -p dlock-counts -- "$@" ;;
    -h | --help) usage ;;
    *) usage >&2; exit 2 ;;
esac
