#!/bin/bash
# tools/kernel.sh cloud|generic: fetches Debian's own kernel package (not installed, not changed) and
# prints the path of its vmlinuz.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${NACELLE_GUEST_CACHE:-build/guest}
case ${1:-} in
cloud) meta=linux-image-cloud-amd64 ;;
generic) meta=linux-image-amd64 ;;
*) echo "usage: tools/kernel.sh cloud|generic" >&2 && exit 2 ;;
esac
link=$cache/vmlinuz-$1
if [ ! -e "$link" ]; then
    [ -z "${NACELLE_LAB:-}" ] || { echo "guest: there is no $link, and the lab has no network; get it on the host first, with tools/kernel.sh $1" >&2 && exit 1; }
    mkdir -p "$cache"
    real() { apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1; }
    package=$(real)
    if [ -z "$package" ]; then
        # A fresh container has no package lists yet.
        if [ "$(id -u)" = 0 ]; then apt-get update -q >&2; else sudo apt-get update -q >&2; fi
        package=$(real)
    fi
    [ -n "$package" ] || { echo "guest: apt knows no $meta" >&2 && exit 1; }
    echo "guest: Debian's $meta is $package" >&2
    dir=$(tools/packages.sh --alone "$package")
    vmlinuz=$(echo "$dir"/boot/vmlinuz-*)
    [ -f "$vmlinuz" ] || { echo "guest: no vmlinuz in $package" >&2 && exit 1; }
    ln -sfn "$(realpath --relative-to="$cache" "$vmlinuz")" "$link.$$"
    mv -T "$link.$$" "$link"
fi
echo "$link"
