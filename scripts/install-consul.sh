#!/usr/bin/env bash
# Unpacks Consul from Debian's bullseye suite under target/servers/consul, for tests. Installs nothing on the machine.
#
# Uses the machine's own Debian mirror through a temporary apt source. Does nothing if CONSUL_BIN is set, if `consul` is on PATH, or if it is
# already unpacked. On other systems: install Consul 1.8 or later yourself and set CONSUL_BIN.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
unpacked=$target/servers/consul

if [ -n "${CONSUL_BIN:-}" ]; then
    [ -x "$CONSUL_BIN" ] && exit 0
    echo "CONSUL_BIN is set to $CONSUL_BIN, which is no program" >&2
    exit 1
fi
if command -v consul >/dev/null || [ -x "$unpacked/usr/bin/consul" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "this is no Debian: install Consul 1.8 or later and set CONSUL_BIN to its path" >&2
    exit 1
fi

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

uri=$(mirror || true)
if [ -z "$uri" ]; then
    echo "no Debian mirror in apt's sources: install Consul 1.8 or later and set CONSUL_BIN to its path" >&2
    exit 1
fi
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if [ ! -f "$keyring" ]; then
    echo "no $keyring: install it with 'apt-get install debian-archive-keyring'" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
echo "deb [signed-by=$keyring] $uri bullseye main" >"$work/bullseye.list"
options=(
    -o "Dir::Etc::sourcelist=$work/bullseye.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=
    -o Debug::NoLocking=true -o Acquire::Retries=3 -q
)
echo "fetching Consul from Debian's bullseye suite ..."
cd "$work"
apt-get "${options[@]}" update >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
apt-get "${options[@]}" download consul >>"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
mkdir -p "$unpacked.new"
dpkg-deb -x "$work"/consul_*.deb "$unpacked.new"
rm -rf "$unpacked"
mv "$unpacked.new" "$unpacked"
"$unpacked/usr/bin/consul" version | head -n 1
