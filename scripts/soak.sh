#!/usr/bin/env bash
# Runs everything that is drawn at random, for a long time: live faults on a real Consul, with and without fair mode, and etcd, and simulations with fresh seeds.
#
# usage: scripts/soak.sh MINUTES
#
# About half of the time goes to the live faults, in rounds of five minutes with a cluster and a seed of their own, on one store after the
# other; the other half to campaigns of the simulators (machines, locker, sharing, the wires of Consul, alone and in line, and etcd). What is under way when the time is up is finished. Stops at
# the first failure, whose output names the seed and what replays it; all output is in target/dlock-sim/soak.log.
#
# DLOCK_SOAK_SEED   where the seeds begin; by default the time, so that no two soaks are alike
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    usage
    exit 0
fi
if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || [ $# -ne 1 ]; then
    usage >&2
    exit 2
fi
cd "$(dirname "$0")/.."
command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.88 or later" >&2; exit 1; }
./scripts/install-protoc.sh
./scripts/install-servers.sh

minutes=$1
seed=${DLOCK_SOAK_SEED:-$(date +%s)}
log=${CARGO_TARGET_DIR:-target}/dlock-sim/soak.log
mkdir -p "$(dirname "$log")"
: >"$log"

# Each campaign with so many schedules as it runs in about a minute on two cores.
campaigns=(
    "the_machines_keep_their_promises 250000"
    "the_locker_keeps_its_promises 50000"
    "those_who_share_and_those_who_take_several_keep_theirs 30000"
    "consuls_client_keeps_its_promises 5000"
    "consuls_client_in_fair_mode_keeps_its_promises 5000"
    "etcds_client_keeps_its_promises 4000"
)

# A round's live faults strike one of these.
stores=(etcd consul fair)

echo "building ..."
cargo test -q -p dlock-sim --test live_consul --test live_fair --test live_etcd --test campaigns --no-run

SECONDS=0
end=$((minutes * 60))
round=0

# attempt WHAT COMMAND...: tells what begins and how far we are, and runs it into the log; a failure is shown and ends the soak.
attempt() {
    local what=$1 began=$SECONDS from
    shift
    printf '[%d of %d min] round %d: %s\n' $((SECONDS / 60)) "$minutes" "$round" "$what"
    from=$(($(wc -l <"$log") + 1))
    if ! RUST_BACKTRACE=0 "$@" >>"$log" 2>&1; then
        tail -n +"$from" "$log" | tail -n 60
        echo "soak failed: $what, after $((SECONDS - began)) s; all output is in $log" >&2
        exit 1
    fi
    tail -n +"$from" "$log" | grep -E '^proof: |violations' | sort -u || true
}

while [ $SECONDS -lt $end ]; do
    round=$((round + 1))
    storm=$(((end - SECONDS) / 2))
    storm=$((storm > 300 ? 300 : storm < 20 ? 20 : storm))
    store=${stores[$((round % ${#stores[@]}))]}
    attempt "live faults on $store for $storm s, seed $seed" \
        env DLOCK_LIVE_SECONDS=$storm DLOCK_LIVE_SEED="$seed" cargo test -q -p dlock-sim --test "live_$store" -- --nocapture
    seed=$((seed + 1))
    simulated=$((SECONDS + storm))
    while [ $SECONDS -lt $simulated ] && [ $SECONDS -lt $end ]; do
        for campaign in "${campaigns[@]}"; do
            [ $SECONDS -lt $end ] || break
            read -r name schedules <<<"$campaign"
            attempt "$name, seeds $seed to $((seed + schedules))" \
                env DLOCK_SIM_SEEDS="$seed..$((seed + schedules))" \
                cargo test -q -p dlock-sim --test campaigns -- --exact "$name" --nocapture
        done
        seed=$((seed + 1000000))
    done
done
echo "soak: $round rounds in $((SECONDS / 60)) min, nothing found"
