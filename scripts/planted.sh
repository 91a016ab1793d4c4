#!/usr/bin/env bash
# Plants bugs that lock libraries have had, one after the other, and has the simulators find each.
#
# usage: scripts/planted.sh [NAME]
#
# With the name of a bug, shows what a developer sees who has made that mistake: the campaign that fails, its smallest plan, its picture,
# and the command that replays it. DLOCK_SIM_REPLAY=PLAN replays a plan with that bug.
set -euo pipefail

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0"; }

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
esac
[ $# -le 1 ] || { usage >&2; exit 2; }
cd "$(dirname "$0")/.."
command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.88 or later" >&2; exit 1; }

# Cargo tells what a wrapper has compiled from what it has compiled without, so that no ordinary build takes in what is built here, and shares with it
# what the crates depend on. Only the programs of dlock-sim are those of the last build: not to be run beside live faults.
export RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/rustc-planted.sh
if [ $# -eq 1 ]; then
    export DLOCK_PLANTED=$1
fi
suite=planted
if [ -n "${DLOCK_SIM_REPLAY:-}" ]; then
    suite=replay
fi
run() { cargo test -q --workspace --all-features --test $suite -- --nocapture; }
if [ $suite = replay ] || [ $# -eq 1 ]; then
    run
    exit
fi
# A build without them would have nothing to run, and pass.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run | tee "$log"
grep -q '^proof: planted bugs: ' "$log" || { echo "nothing was planted: the compiler was not told of the bugs" >&2; exit 1; }
