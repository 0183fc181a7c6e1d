#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The unit file is one that systemd accepts, and its hardening is not talk.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v systemd-analyze >/dev/null || { echo "SKIP: systemd-analyze is not installed"; exit 77; }
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

# systemd wants the program to be there: point the unit at the one that was built.
moged=$(realpath "${MOGE_BUILD:-build/release}/moged")
sed "s|^\(ExecStart[A-Za-z]*=\)[^ ]*/moged|\1$moged|" systemd/moged.service >"$place/moged.service"
grep -q "$moged" "$place/moged.service" || { echo "the unit starts no moged"; exit 1; }
said=$(systemd-analyze verify --man=no "$place/moged.service" 2>&1 | grep -F "moged.service" || true)
[ -z "$said" ] || { echo "systemd-analyze verify: $said"; exit 1; }

grep -q '^Type=notify' "$place/moged.service" || { echo "the unit is not Type=notify"; exit 1; }
exposure=$(systemd-analyze security --offline=true "$place/moged.service" 2>/dev/null |
    sed -n 's/.*Overall exposure level for moged.service: \([0-9.]*\).*/\1/p')
[ -n "$exposure" ] || { echo "SKIP: this systemd cannot judge a unit file offline"; exit 77; }
awk -v e="$exposure" 'BEGIN { exit !(e < 3) }' || { echo "exposure level $exposure, at most 3"; exit 1; }
echo "the unit verifies; exposure level $exposure"
