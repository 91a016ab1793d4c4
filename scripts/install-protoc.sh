#!/usr/bin/env bash
# Makes sure of protoc, without which the client of etcd does not build. Does nothing if PROTOC names it or it is on PATH and
# has its own files beside it.
#
# As root on Debian or Ubuntu it installs the packages protobuf-compiler and libprotobuf-dev (the files that every .proto may import); elsewhere
# it says what to install.
set -euo pipefail

if [ -n "${PROTOC:-}" ]; then
    [ -x "$PROTOC" ] && exit 0
    echo "PROTOC is set to $PROTOC, which is no program" >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Whether protoc is there, and with it the files that it brings along; Debian ships them in a package of their own.
is_whole() {
    printf 'syntax = "proto3";\nimport "google/protobuf/descriptor.proto";\n' >"$work/probe.proto"
    command -v protoc >/dev/null && protoc -I "$work" -o /dev/null "$work/probe.proto" 2>/dev/null
}

if is_whole; then
    exit 0
fi
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "installing protobuf-compiler ..."
    log=$work/log
    export DEBIAN_FRONTEND=noninteractive
    if apt-get -q update >"$log" 2>&1 && apt-get -q install -y --no-install-recommends protobuf-compiler libprotobuf-dev >>"$log" 2>&1; then
        protoc --version
        is_whole && exit 0
    fi
    cat "$log" >&2
fi
echo "no protoc: install it (Debian and Ubuntu: 'apt-get install protobuf-compiler libprotobuf-dev', macOS: 'brew install protobuf'), or set PROTOC to its path" >&2
exit 1
