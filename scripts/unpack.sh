# For other scripts: unpacks Debian's packages into a folder, and installs nothing on the machine.

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

# unpack FOLDER SUITE OTHERWISE PACKAGE...: unpacks the packages of a suite into a folder, or says what to do otherwise and ends.
unpack() {
    local unpacked=$1 suite=$2 otherwise=$3
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
    echo "fetching $* from Debian's $suite suite ..."
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
