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

# The first mirror of this machine that serves Debian itself, from either form of apt's sources.
mirror() {
    shopt -s nullglob
    local files=(/etc/apt/sources.list.d/*.sources) lists=(/etc/apt/sources.list /etc/apt/sources.list.d/*.list)
    {
        [ ${#files[@]} -eq 0 ] || awk '/^URIs:/ { print $2 }' "${files[@]}"
        for list in "${lists[@]}"; do
            [ ! -f "$list" ] || awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /^(https?|mirror)/) { print $i; break } }' "$list"
        done
    } | grep -E '/debian/?$' | head -n 1
}

# unpack SERVER SUITE OTHERWISE PACKAGE...: unpacks the packages of a suite under target/servers/SERVER.
unpack() {
    local server=$1 suite=$2 otherwise=$3 unpacked=$target/servers/$1
    shift 3
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        echo "this is no Debian: $otherwise" >&2
        exit 1
    fi
    local uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    uri=$(mirror || true)
    if [ -z "$uri" ]; then
        echo "no Debian mirror in apt's sources: $otherwise" >&2
        exit 1
    fi
    if [ ! -f "$keyring" ]; then
        echo "no $keyring: install it with 'apt-get install debian-archive-keyring'" >&2
        exit 1
    fi
    local work
    work=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$work'" EXIT
    chmod 755 "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    echo "deb [signed-by=$keyring] $uri $suite main" >"$work/$suite.list"
    local options=(
        -o "Dir::Etc::sourcelist=$work/$suite.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=
        -o Debug::NoLocking=true -o Acquire::Retries=3 -q
    )
    echo "fetching $server from Debian's $suite suite ..."
    (
        cd "$work"
        apt-get "${options[@]}" update >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
        # With the suite named, for apt otherwise holds to a release that the machine's preferences name.
        apt-get "${options[@]}" download "${@/%//$suite}" >>"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    )
    rm -rf "$unpacked.new"
    mkdir -p "$unpacked.new"
    for package in "$work"/*.deb; do
        dpkg-deb -x "$package" "$unpacked.new"
    done
    rm -rf "$unpacked"
    mv "$unpacked.new" "$unpacked"
    rm -rf "$work"
}

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
    unpack consul bullseye "install Consul 1.8 or later and set CONSUL_BIN to its path" consul
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
    unpack etcd trixie "install etcd 3.5 or later with etcdctl, and set ETCD_BIN to its path" etcd-server etcd-client
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
