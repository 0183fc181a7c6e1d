#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Writes vocabularies.golden: small random vocabularies, strings, and what SentencePiece makes of them.

    vocabularies.py OUT

A trained model rarely shows the corners of the algorithm: equal scores, unused pieces, user-defined
pieces that overlap, unknown characters without byte tokens, collapsing spaces.  Random ones do all the time.
Needs Debian's python3-sentencepiece (0.1.97).
"""
import random
import struct
import sys

import sentencepiece as spm

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ALPHABET = "abc\u2581\u2581\u00e9\u4e2d\U0001f600."


def varint(n):
    out = b""
    while n >= 0x80:
        out += bytes([n & 0x7f | 0x80])
        n >>= 7
    return out + bytes([n])


def block(field, body):
    return varint(field << 3 | 2) + varint(len(body)) + body


def number(field, n):
    return varint(field << 3) + varint(n)


def model_proto(pieces, add_prefix, squeeze):
    """A sentencepiece.ModelProto: pieces, trainer_spec (BPE, byte_fallback), normalizer_spec (identity)."""
    out = b""
    for text, score, kind in pieces:
        out += block(1, block(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))
    has_bytes = any(kind == BYTE for _, _, kind in pieces)
    out += block(2, number(3, 2) + number(35, int(has_bytes)))
    return out + block(3, block(1, b"identity") + number(3, int(add_prefix)) + number(4, int(squeeze)) + number(5, 1))


def vocabulary(rng):
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    if rng.random() < 0.6:
        pieces += [(f"<0x{b:02X}>", 0.0, BYTE) for b in range(256)]
    unused, user = rng.choice([(0, 0), (0.15, 0), (0, 0.1), (0.3, 0.05), (0.1, 0.1)])
    known = [c for c in sorted(set(ALPHABET)) if rng.random() < 0.85] or ["a"]
    texts = list(known)
    for _ in range(rng.randint(4, 40)):
        text = rng.choice(texts) + rng.choice(texts)
        if rng.random() < 0.05:
            text += rng.choice("xyz<")
        if text not in texts and len(text) <= 8:
            texts.append(text)
    rng.shuffle(texts)
    scores = rng.choice([[0.0], [-1.0, -2.0, -3.0], [-float(i) for i in range(40)]])
    for text in texts:
        p = rng.random()
        kind = UNUSED if p < unused else USER if p < unused + user else NORMAL
        pieces.append((text, rng.choice(scores), kind))
    return pieces


def string(rng, pieces):
    units = list(ALPHABET) + [" ", " ", "a", "b", "\n", "x", "\u00e9", "<s>"] + [p[0] for p in pieces[-12:]]
    return "".join(rng.choice(units) * rng.choice([1, 1, 1, 1, 2, 3]) for _ in range(rng.randint(0, 14)))


def main():
    rng = random.Random(11)
    n_vocabularies, n_strings = 160, 50
    out = b"MGVC" + struct.pack("<2I", 1, n_vocabularies)
    for _ in range(n_vocabularies):
        pieces = vocabulary(rng)
        add_prefix, squeeze = rng.random() < 0.7, rng.random() < 0.4
        sp = spm.SentencePieceProcessor(model_proto=model_proto(pieces, add_prefix, squeeze))
        out += struct.pack("<BBI", add_prefix, squeeze, len(pieces))
        for text, score, kind in pieces:
            out += struct.pack("<BfH", kind, score, len(text.encode())) + text.encode()
        out += struct.pack("<I", n_strings)
        for _ in range(n_strings):
            text = string(rng, pieces)
            ids = sp.encode(text)
            out += struct.pack("<H", len(text.encode())) + text.encode()
            out += struct.pack(f"<H{len(ids)}H", len(ids), *ids)
    with open(sys.argv[1], "wb") as f:
        f.write(out)


if __name__ == "__main__":
    main()
