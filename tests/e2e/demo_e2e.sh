#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# scripts/demo on the tiny pair: it succeeds, says what it should, and leaves no process and no file
# behind, also when it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/../.."
case "${MOGE_BUILD:-build/release}" in
*/release | release) ;;
*) echo "SKIP: the demo builds and runs the release preset"; exit 77 ;;
esac
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
pair=(--model tests/golden/tiny-target.gguf --draft tests/golden/tiny-draft.gguf)

nothing_left() {
    if pgrep -f "$place" >"$place.left"; then
        echo "$1 left processes behind: $(cat "$place.left")"
        exit 1
    fi
    rm -f "$place.left"
    [ -z "$(ls -A "$place/tmp")" ] || { echo "$1 left files behind"; exit 1; }
}

mkdir "$place/tmp"
export TMPDIR=$place/tmp MOGE_NO_INSTALL=1
timeout 300 scripts/demo "${pair[@]}" --rounds 1 --max-tokens 40 --streams 3 >"$place/said" 2>&1 || {
    cat "$place/said"
    exit 1
}
grep -q "the bytes are the same: " "$place/said"
grep -q "off .* tok/s, auto .* tok/s" "$place/said"
grep -Eq "guesses accepted|no guesses were offered" "$place/said"
nothing_left "the demo"

# A long one, interrupted once it streams.
setsid timeout 300 scripts/demo "${pair[@]}" --rounds 32 --max-tokens 400 >"$place/said" 2>&1 &
demo=$!
for ((i = 0; i < 600; i++)); do
    grep -q "round 1, speculation" "$place/said" && break
    kill -0 "$demo" 2>/dev/null || break
    sleep 0.1
done
# setsid made it a leader: this reaches all that it started, and nobody else's demo.
kill -TERM -- "-$demo" || true
status=0
wait "$demo" || status=$?
[ "$status" != 0 ] || { echo "an interrupted demo succeeded"; exit 1; }
nothing_left "an interrupted demo"

# A model that is not there: the sentence of the daemon, and a failing exit.
if timeout 60 scripts/demo --model "$place/absent.gguf" >"$place/said" 2>&1; then
    echo "the demo succeeded without a model"
    exit 1
fi
grep -q "absent.gguf" "$place/said"
nothing_left "a failing demo"
echo "the demo works, fails and stops as it should"
