#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The whole recipe: text, tokenizer, both models, export, golden files, measurements.
#
#   run.sh DIR [MINUTES [DISTILL_MINUTES]]      DIR keeps text, checkpoints and logs (about 0.7 GB)
#
# Run it again after an interruption: finished steps are skipped and training goes on from its checkpoint.
# Needs Debian's python3-torch, python3-sentencepiece, dpkg-dev and an OpenBLAS.
set -euo pipefail
dir=${1:?usage: run.sh DIR [MINUTES [DISTILL_MINUTES]]}
minutes=${2:-66}
distill=${3:-12}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
cd "$(dirname "$0")"

# Large tensors come and go at every step. Without these the C library gives their pages back to the
# kernel each time, and clearing fresh ones takes longer than the arithmetic.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=500000000
# Sleep instead of spinning at the end of every parallel loop: on a shared machine a spinning thread takes
# the time of the one it waits for.
export OMP_WAIT_POLICY=passive

[ -f "$dir/train.bin" ] || ./data.sh "$dir"
if [ ! -f "$dir/final.pt" ]; then
    resume=
    [ -f "$dir/checkpoint.pt" ] && resume=--resume
    /usr/bin/python3 -u train.py --dir "$dir" --minutes "$minutes" $resume | tee -a "$dir/train.log"
    /usr/bin/python3 -u train.py --dir "$dir" --distill "$distill" | tee -a "$dir/distill.log"
fi
/usr/bin/python3 export.py --dir "$dir" --out ../../models
cp "$dir/heldout.txt" ../../tests/golden/heldout.txt
./golden.sh
/usr/bin/python3 eval.py --models ../../models --text ../../tests/golden/heldout.txt | tee "$dir/eval.md"
