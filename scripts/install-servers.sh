#!/usr/bin/env bash
# Unpacks the servers that tests need under target/servers, from Debian's packages. Installs nothing on the machine.
#
# usage: scripts/install-servers.sh [consul] [etcd]
#
# Without arguments, both: Consul 1.8 from Debian's bullseye suite, etcd 3.5 with etcdctl from its trixie suite. Uses the machine's own
# Debian mirror through a temporary apt source. Leaves a server alone if CONSUL_BIN or ETCD_BIN names it, if it is on PATH, or if it is
# already unpacked. On other systems: install Consul 1.8 or later and etcd 3.5 or later yourself, and set CONSUL_BIN and ETCD_BIN.
set -euo pipefail

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}

# shellcheck source=scripts/unpack.sh
. "$root/scripts/unpack.sh"

# is_there VARIABLE PROGRAM SERVER: whether the variable, PATH or the folder of the server has the program.
is_there() {
    local named=${!1:-}
    if [ -n "$named" ]; then
        [ -x "$named" ] && return 0
        echo "$1 is set to $named, which is no program" >&2
        exit 1
    fi
    command -v "$2" >/dev/null || [ -x "$target/servers/$3/usr/bin/$2" ]
}

install_consul() {
    is_there CONSUL_BIN consul consul && return
    unpack "$target/servers/consul" bullseye "install Consul 1.8 or later and set CONSUL_BIN to its path" consul
    "$target/servers/consul/usr/bin/consul" version | head -n 1
}

install_etcd() {
    if is_there ETCD_BIN etcd etcd; then
        # Whoever has an etcd of their own has its etcdctl beside it, on PATH, or named by ETCDCTL_BIN.
        if is_there ETCDCTL_BIN etcdctl etcd || [ -x "$(dirname "$(command -v "${ETCD_BIN:-etcd}")")/etcdctl" ]; then
            return
        fi
        echo "there is an etcd and no etcdctl: put it beside etcd or on PATH, or set ETCDCTL_BIN to its path" >&2
        exit 1
    fi
    unpack "$target/servers/etcd" trixie "install etcd 3.5 or later with etcdctl, and set ETCD_BIN to its path" etcd-server etcd-client
    "$target/servers/etcd/usr/bin/etcd" --version | head -n 1
}

[ $# -gt 0 ] || set -- consul etcd
for server in "$@"; do
    case "$server" in
        consul | etcd) "install_$server" ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
