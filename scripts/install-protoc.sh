#!/usr/bin/env bash
# Makes sure of protoc, without which the client of etcd does not build. Does nothing if PROTOC names it or it is on PATH.
#
# As root on Debian or Ubuntu it installs the package protobuf-compiler; elsewhere it says what to install.
set -euo pipefail

if [ -n "${PROTOC:-}" ]; then
    [ -x "$PROTOC" ] && exit 0
    echo "PROTOC is set to $PROTOC, which is no program" >&2
    exit 1
fi
if command -v protoc >/dev/null; then
    exit 0
fi
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "installing protobuf-compiler ..."
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    export DEBIAN_FRONTEND=noninteractive
    if apt-get -q update >"$log" 2>&1 && apt-get -q install -y --no-install-recommends protobuf-compiler >>"$log" 2>&1; then
        protoc --version
        exit 0
    fi
    cat "$log" >&2
fi
echo "no protoc: install it (Debian and Ubuntu: 'apt-get install protobuf-compiler', macOS: 'brew install protobuf'), or set PROTOC to its path" >&2
exit 1
