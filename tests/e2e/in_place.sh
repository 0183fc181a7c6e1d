#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# in_place.sh COMMAND...: runs a test with a TMPDIR of its own, and removes it afterwards.  A test that is
# killed leaves its directory; the next one removes what belongs to no process any more.
set -uo pipefail
parent=${TMPDIR:-/tmp}
for place in "$parent"/moged-test-*; do
    [ -d "/proc/${place##*-}" ] || rm -rf "$place"
done
export TMPDIR=$parent/moged-test-$$
mkdir "$TMPDIR" || exit 1
trap 'rm -rf "$TMPDIR"' EXIT
"$@"
