#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes every file of tests/golden again, from models/ and tests/golden/heldout.txt alone.
# Needs Debian's python3-torch and python3-sentencepiece.
set -eu
cd "$(dirname "$0")"
out=../../tests/golden
models=../../models
text=$out/heldout.txt
py() { echo "$@"; /usr/bin/python3 "$@"; }

py tiny.py $text $out
for seed in 1 2; do
    for part in target draft; do
        py golden.py logits $out/tiny-$part.gguf $seed $out/tiny-$part-random$seed.logits --tokens 96
    done
done
py golden.py tokens $out/tiny-tokenizer.model $text $out/tiny-tokenizer.golden --strings 2000
py golden.py tokens $models/tokenizer.model $text $out/tokenizer.golden --strings 12000
py $out/vocabularies.py $out/vocabularies.golden

for part in target draft; do
    file=$models/moge-embedded-$part.gguf
    [ -f $file ] || { echo "golden.sh: $file does not exist yet; its golden files are left alone"; exit 0; }
    py golden.py logits $file $text $out/embedded-$part-text.logits --tokens 512
    py golden.py logits $file 3 $out/embedded-$part-random.logits --tokens 64 --full 4
done
py golden.py top1 $models/moge-embedded-target.gguf $text $out/heldout.top1 --sequences 12 --tokens 400
