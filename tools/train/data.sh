#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Fetches the training text: Debian's source package `sqlite3` (public domain; its www/ folder holds
# the whole SQLite documentation), then cleans it, splits it and trains the tokenizer.
# Usage: data.sh DIR
set -eu
dir=${1:?usage: data.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$dir/apt/sources" "$dir/apt/lists/partial" "$dir/src"

# A private copy of this machine's own Debian sources with deb-src switched on; /etc stays untouched.
for f in /etc/apt/sources.list.d/*.sources; do
    grep -q debian-archive-keyring "$f" 2>/dev/null || continue
    sed 's/^Types:.*/Types: deb-src/' "$f" > "$dir/apt/sources/$(basename "$f")"
done
if [ -f /etc/apt/sources.list ]; then
    sed -n 's/^deb /deb-src /p' /etc/apt/sources.list > "$dir/apt/sources/main.list"
fi
apt() { # the private lists only
    apt-get -q -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$dir/apt/sources" \
        -o Dir::State::lists="$dir/apt/lists" -o APT::Sandbox::User=root "$@"
}
if ! ls -d "$dir"/src/sqlite3-*/ >/dev/null 2>&1; then
    apt update
    (cd "$dir/src" && apt source sqlite3)
fi
exec /usr/bin/python3 "$here/data.py" "$dir"
