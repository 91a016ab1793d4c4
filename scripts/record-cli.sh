#!/usr/bin/env bash
# Records the terminal sessions of docs/cli.md: runs each for real, on terminals that util-linux's script makes, and prints them as Markdown.
#
# usage: scripts/record-cli.sh
set -euo pipefail

if [ $# -gt 0 ]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0"
    [ "$1" = --help ] || [ "$1" = -h ] && exit 0 || exit 2
fi
cd "$(dirname "$0")/.."
cargo build --quiet -p dlock-cli
PATH=$(realpath "${CARGO_TARGET_DIR:-target}")/debug:$PATH
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
export PATH XDG_STATE_HOME=$work TERM=dumb
unset DLOCK_URL

# on_terminal FILE COMMAND: what the command shows, each state of a line that changes on a line of its own.
on_terminal() {
    script -qefc "stty cols 120; $2" "$1.raw" </dev/null >/dev/null || true
    sed -e '/^Script started/d; /^Script done/d; /^$/d; s/\r$//; s/\r/\n/g' "$1.raw" | sed -e 's/\x1b\[2K//g; s/[\x04\x08]//g; s/\^D//; /^$/d' -e "s#$work#/home/me/.local/state#g" >"$1"
}

# session COMMAND: runs it on a terminal, and prints both.
session() {
    on_terminal "$work/session" "$1"
    printf '$ %s\n' "$1"
    cat "$work/session"
}

until_held() { until dlock --json who "$1" | grep -q '"pid"'; do sleep 0.05; done; }

heading() { printf '\n**%s**\n\n```console\n' "$1"; }
end() { printf '```\n'; }

heading 'A command under a lock'
session "dlock run deploy -- sh -c 'echo \"deploying, token \$DLOCK_TOKEN\"; exit 3'; echo \"exit code \$?\""
end

heading 'Another has it: one line that changes, until it is ours'
dlock run --metadata release=1.42 deploy -- sleep 4 &
until_held deploy
session 'dlock run deploy -- echo mine'
end
wait

heading 'Who has it, and who waits'
dlock run --metadata release=1.42 deploy -- sleep 5 &
until_held deploy
dlock run --quiet deploy -- true &
until dlock --json who deploy | grep -q '"waiters":\[{'; do sleep 0.05; done
session 'dlock who deploy'
session 'dlock ls'
end
wait

heading 'Every change, as it comes'
(
    until [ -s "$work/session.raw" ] && grep -q free "$work/session.raw"; do sleep 0.05; done
    dlock run --metadata release=1.43 deploy -- sleep 1
    sleep 0.5
    pkill -INT -fx 'dlock watch deploy'
) &
session 'dlock watch deploy'
end
wait

heading 'Is the store fit for locks?'
session 'dlock doctor'
session 'dlock --backend consul://127.0.0.1:1 doctor; echo "exit code $?"'
end

heading 'The lock is lost: somebody takes it away'
(
    until_held deploy
    dlock break --yes deploy >/dev/null
) &
session "dlock run deploy -- sh -c 'trap \"echo cleaning up; exit\" TERM; echo at work; while :; do sleep 0.1; done'; echo \"exit code \$?\""
end
wait

heading 'The lock is lost: dlock itself is frozen for ten seconds, and its command is gone when it wakes up'
(
    until_held deploy
    pkill -STOP -fx 'dlock run --ttl 6s deploy -- sleep 100'
    sleep 10
    pkill -CONT -fx 'dlock run --ttl 6s deploy -- sleep 100'
) &
session 'dlock run --ttl 6s deploy -- sleep 100; echo "exit code $?"'
end
wait
