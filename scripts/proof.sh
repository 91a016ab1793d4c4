#!/usr/bin/env bash
# Says in a few lines what a run of all tests has proved, from its log; fails if a part is missing.
#
# usage: scripts/proof.sh LOG
set -euo pipefail

if [ $# -ne 1 ] || [ ! -f "$1" ]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi

# Cases of a suite by the backend they ran on: the name of a test begins with the backend's where a program has more than one.
cases() {
    awk '
    / Running / { program = $2; sub(".*/", "", program); sub("\\.rs$", "", program) }
    /^test .* \.\.\. ok$/ && program ~ /_conformance$|^suite_/ {
        backend = program; sub("_conformance$", "", backend); sub("^suite_", "", backend)
        if (backend == "memory") backend = "memory, " substr($2, 1, index($2, ":") - 1)
        count[(program ~ /^suite_/ ? "suite of the locker" : "conformance") " on " backend]++
    }
    END { for (suite in count) printf "proof: %s: %d cases\n", suite, count[suite] }
    ' "$1" | sort
}

cases "$1"
grep '^proof: ' "$1"

said=$(cases "$1"; grep '^proof: ' "$1")
for part in \
    "conformance on memory, queue:" "conformance on memory, line:" "conformance on memory, slot:" "conformance on memory, only_permit:" "conformance on memory, last_permit:" "conformance on consul:" "conformance on fair:" "conformance on deleting:" "conformance on etcd:" "conformance on sqlite:" "conformance on own_backend:" \
    "suite of the locker on memory, queue:" "suite of the locker on memory, line:" "suite of the locker on memory, slot:" "suite of the locker on memory, only_permit:" "suite of the locker on memory, last_permit:" "suite of the locker on consul:" "suite of the locker on fair:" "suite of the locker on etcd:" "suite of the locker on sqlite:" \
    "Machines:" "Locker:" "Beside:" "Wire:" "WireFair:" "WireEtcd:" "fake etcd:" "turmoil:" "determinism:" "model, Queue:" "model, Line:" "model, Slot:" "planted bugs:" \
    "live on consul:" "live on consul, fair:" "live on etcd:" \
    "counts:" \
    "fuzz corpus, consul_answers:" "fuzz corpus, consul_config:" "fuzz corpus, durations:" "fuzz corpus, etcd_config:" "fuzz corpus, key:" \
    "fuzz corpus, metadata:" "fuzz corpus, plan:" "fuzz corpus, store_url:"; do
    grep -q "^proof: $part" <<<"$said" || { echo "the log tells nothing of \"$part\"" >&2; exit 1; }
done
grep -qE '^proof: planted bugs: ([0-9]+) of \1 caught$' <<<"$said" || { echo "a planted bug escaped" >&2; exit 1; }
for store in consul "consul, fair" etcd; do
    grep -qE "^proof: live on $store: fenced updates [0-9]+, refused [0-9]+, lost 0\$" <<<"$said" ||
        { echo "the log does not say that no fenced update was lost on $store" >&2; exit 1; }
done
