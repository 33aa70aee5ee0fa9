#!/bin/bash
# tools/packages.sh PACKAGE...: downloads Debian packages with all they depend on, unpacks each, and
# prints the directories. Nothing is installed and no root is needed. build/guest/ keeps everything, so a second run
# needs no network. Only packages of Debian itself are taken, whatever other archives the machine knows.
# With --alone the packages are taken without what they depend on.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/${NACELLE_GUEST_CACHE:-build/guest}
closure=yes
if [ "${1:-}" = --alone ]; then
    closure=no
    shift
fi
[ $# -gt 0 ] || { echo "usage: tools/packages.sh [--alone] PACKAGE..." >&2 && exit 2; }
mkdir -p "$cache/lists" "$cache/unpacked"

printf 'Package: *\nPin: release o=Debian\nPin-Priority: 900\n\nPackage: *\nPin: release o=*\nPin-Priority: -1\n' \
    >"$cache/preferences.$$"
trap 'rm -rf "$cache/preferences.$$" "$cache/partial.$$"' EXIT
# The empty status makes apt resolve as on a machine with nothing installed.
apt_options=(-q -o Dir::Etc::Preferences="$cache/preferences.$$" -o Dir::Etc::PreferencesParts=/nonexistent
    -o Dir::State::status=/dev/null -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un 2>/dev/null || echo root)")

# The lab's box (lab/run) has no network: better a sentence than minutes of trying.
need_network() {
    [ -z "${NACELLE_LAB:-}" ] || { echo "guest: $* is not in ${NACELLE_GUEST_CACHE:-build/guest}, and the lab has no network; get it on the host first, with tools/packages.sh" >&2 && exit 1; }
}
update_lists() {
    echo "guest: fetching new package lists" >&2
    if [ "$(id -u)" = 0 ]; then apt-get update -q >&2; else sudo apt-get update -q >&2; fi
}

# Prints name=version of every package to take.
resolve() {
    if [ $closure = yes ]; then
        apt-get "${apt_options[@]}" -s --no-install-recommends install "$@" | sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1=\2/p'
    else
        local package version
        for package in "$@"; do
            version=$(apt-cache "${apt_options[@]}" policy "$package" | sed -n 's/^  Candidate: //p')
            [ -n "$version" ] && [ "$version" != "(none)" ] || return 1
            echo "$package=$version"
        done
    fi
}

key=$(printf '%s\n' $closure "$@" | sha256sum | cut -c1-16)
list=$cache/lists/$key
if [ ! -s "$list" ]; then
    need_network "$*"
    resolve "$@" >"$list.$$" 2>"$list.err.$$" || {
        update_lists
        resolve "$@" >"$list.$$"
    }
    rm -f "$list.err.$$"
    [ -s "$list.$$" ] || { echo "guest: apt knows no package $*" >&2 && exit 1; }
    mv "$list.$$" "$list"
fi

unpacked_dir() {
    echo "$cache/unpacked/$(echo "$1" | tr '=:' '_%')"
}

wanted=()
while read -r package; do
    [ -d "$(unpacked_dir "$package")" ] || wanted+=("$package")
done <"$list"

if [ ${#wanted[@]} -gt 0 ]; then
    need_network "${wanted[@]}"
    echo "guest: downloading ${#wanted[@]} Debian packages for: $*" >&2
    mkdir -p "$cache/partial.$$"
    download() { (cd "$cache/partial.$$" && apt-get "${apt_options[@]}" download "${wanted[@]}" >download.log 2>&1); }
    download || {
        update_lists
        download
    } || {
        tail -5 "$cache/partial.$$/download.log" >&2
        # What apt chose may be gone from the archive: let the next run choose again.
        rm -f "$list"
        echo "guest: the download failed; try again" >&2
        exit 1
    }
    for deb in "$cache/partial.$$"/*.deb; do
        id=$(dpkg-deb -f "$deb" Package)=$(dpkg-deb -f "$deb" Version)
        dir=$(unpacked_dir "$id")
        [ ! -d "$dir" ] || continue
        mkdir "$dir.$$"
        dpkg-deb -x "$deb" "$dir.$$"
        chmod -R u+rwX "$dir.$$"
        mv -T "$dir.$$" "$dir" 2>/dev/null || rm -rf "$dir.$$" # another run was quicker
    done
fi
while read -r package; do
    unpacked_dir "$package"
done <"$list"
