#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the golden files; tests/golden/README.md describes the formats.

    golden.py logits GGUF TEXT OUT [--tokens N --full N]
    golden.py top1 GGUF TEXT OUT [--sequences N --tokens N]
    golden.py tokens TOKENIZER.model TEXT OUT [--strings N]

TEXT is held-out text, or a number: the seed of random tokens.
"""
import argparse
import random
import struct

import numpy as np
import sentencepiece as spm
import torch

import export
import gguf

K = 8


def pieces_of(path):
    """A SentencePiece processor for the tokenizer inside a GGUF file: the .model file beside it."""
    import os
    tiny = "tiny-" if os.path.basename(path).startswith("tiny-") else ""
    return spm.SentencePieceProcessor(model_file=os.path.join(os.path.dirname(path), tiny + "tokenizer.model"))


def sequences(path, text, count, length):
    """count token sequences of the given length, each starting with <s>, spread over the text."""
    if text.isdigit():
        vocab = len(gguf.read(path)[0]["tokenizer.ggml.tokens"])
        rng = np.random.default_rng(int(text))
        return [[1] + rng.integers(3, vocab, length - 1).tolist() for _ in range(count)]
    with open(text, encoding="utf-8") as f:
        lines = f.read().split("\n")
    sp, out = pieces_of(path), []
    for i in range(count):
        start = len(lines) * i // count
        ids = sp.encode("\n".join(lines[start:start + 4 * length]))
        out.append([1] + ids[:length - 1])
        assert len(out[-1]) == length, "the text is too short"
    return out


@torch.no_grad()
def logits_of(model, tokens):
    return model(torch.tensor([tokens]))[0]


def write_logits(args):
    model, tokens = export.load(args.model), sequences(args.model, args.text, 1, args.tokens)[0]
    logits = logits_of(model, tokens)
    top = logits.topk(K)
    full = sorted({round(i * (len(tokens) - 1) / max(1, args.full - 1)) for i in range(args.full)})
    with open(args.out, "wb") as f:
        f.write(b"MGLG" + struct.pack("<5I", 1, len(tokens), logits.shape[1], K, len(full)))
        f.write(np.array(tokens, "<i4").tobytes())
        for ids, values in zip(top.indices.numpy(), top.values.numpy()):
            f.write(ids.astype("<i4").tobytes() + values.astype("<f4").tobytes())
        for p in full:
            f.write(struct.pack("<I", p) + logits[p].numpy().astype("<f4").tobytes())


def write_top1(args):
    model = export.load(args.model)
    seqs = sequences(args.model, args.text, args.sequences, args.tokens)
    with open(args.out, "wb") as f:
        f.write(b"MGT1" + struct.pack("<2I", 1, len(seqs)))
        for tokens in seqs:
            top = logits_of(model, tokens).topk(2)
            f.write(struct.pack("<I", len(tokens)) + np.array(tokens, "<i4").tobytes())
            f.write(top.indices[:, 0].numpy().astype("<i4").tobytes())
            f.write((top.values[:, 0] - top.values[:, 1]).numpy().astype("<f4").tobytes())


# Strings chosen by hand: every one was picked because some tokenizer somewhere gets it wrong.
ODD = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n ", "\t", "\t\t x", "\r\n", "a", " a", "a ", "  a  ", "\u2581", "a\u2581b", "\u2581\u2581",
    "<s>", "</s>", "<unk>", "<s>hello</s>", "[unused9]", "[unused10]", "[unused16]", "[unused17]", " [unused9]",
    "[unused9] ", "[unused9][unused9]", "a[unused9]b", "[unused9]系统：[unused10][unused9]用户：你是谁？[unused10][unused9]助手：",
    "[unused9", "unused9]", "[[unused9]]", "[unused", "<0x0A>", "<0x41>", "<0xFF>",
    "é", "e\u0301", "Å", "A\u030a", "ﬁ", "①", "ｆｕｌｌ", "İi", "ß", "ẞ", "ǅ", "中文分词", "日本語テキスト", "한국어", "ไทย", "العربية",
    "עברית", "हिन्दी", "\u200d", "\u200b", "\ufeff", "\u00a0", "\u3000", "\u2028", "\u2029", "\u0085", "\x00", "a\x00b", "\x01\x7f",
    "\ufffd", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0010ffff", "\ue000", "\ufffe", "\U00020000",
    "Z̸̢͉͗a̵͙͝l̶̮̈́g̴̖̓o̷͕͘", "a" * 1000, " " * 1000, "\n" * 300, "ab" * 700, "é" * 300, "中" * 200, "\U0001f600" * 60, "=" * 500, "0" * 300,
    "** " * 200, "x " * 300, " x" * 300, "((((((((((((", "SELECT * FROM t1 WHERE a=1;", "sqlite3_open_v2()", "don't", "3.14159", "1,000,000",
    "http://example.com/a?b=c&d=%20", "C:\\path\\file", "\\n", "\"quoted\"", "`tick`", "~!@#$%^&*()_+{}|:<>?", "\\", "\\0",
]


def odd_strings(count, rng):
    """Random mixtures: code points of many scripts, spaces of all kinds, special tokens, repeated runs."""
    ranges = [(0x20, 0x7e), (0x20, 0x7e), (0xa0, 0x24f), (0x300, 0x36f), (0x370, 0x5ff), (0x900, 0xdff), (0x1e00, 0x206f),
              (0x2190, 0x27bf), (0x3040, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0xe000, 0xf8ff), (0xff00, 0xffef),
              (0x1f300, 0x1faff), (0x20000, 0x2a6df), (0x10fff0, 0x10ffff), (0, 0x1f)]
    words = ["[unused9]", "[unused10]", "[unused16]", "<s>", "</s>", " ", "  ", "\n", "\t", "\u2581", "\u00a0", "the", "sqlite3", "SELECT",
             "<0x0A>", "\u200d", "\U0001f600", "e\u0301", "\r\n", "**", "    "]
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 8)):
            low, high = rng.choice(ranges)
            what = rng.random()
            if what < 0.35:
                parts.append(rng.choice(words))
            elif what < 0.45:
                parts.append(rng.choice(words) * rng.randint(2, 9))
            else:
                parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4))))
        yield "".join(parts)


def write_tokens(args):
    sp, rng = spm.SentencePieceProcessor(model_file=args.model), random.Random(7)
    with open(args.text, encoding="utf-8") as f:
        text = f.read()
    lines = [line for line in text.split("\n") if line]
    strings = list(ODD) + list(odd_strings(args.strings * 2 // 5, rng))
    for i in range(args.strings // 100):  # long pieces with newlines inside
        start = rng.randrange(len(text) - 800)
        strings.append(text[start:start + rng.randint(100, 800)])
    for line in rng.sample(lines, len(lines)):
        if len(strings) >= args.strings:
            break
        start = 0 if rng.random() < 0.5 else rng.randrange(len(line))  # whole lines and lines cut anywhere
        strings.append(line[start:])
    while len(strings) < args.strings:
        start = rng.randrange(len(text) - 40)
        strings.append(text[start:start + rng.randint(1, 40)])
    with open(args.out, "wb") as f:
        f.write(b"MGTK" + struct.pack("<2I", 1, len(strings)))
        for s in strings:
            ids, raw = sp.encode(s), s.encode()
            # SentencePiece itself reads U+2581 as a space; all other text comes back unchanged.
            if sp.decode(ids) != s.replace("\u2581", " "):
                print("does not come back:", repr(s)[:100], repr(sp.decode(ids))[:100])
            f.write(struct.pack("<I", len(raw)) + raw + struct.pack("<I", len(ids)) + np.array(ids, "<u2").tobytes())


def main():
    p = argparse.ArgumentParser()
    p.add_argument("what", choices=("logits", "top1", "tokens"))
    p.add_argument("model")
    p.add_argument("text")
    p.add_argument("out")
    p.add_argument("--tokens", type=int, default=256)
    p.add_argument("--full", type=int, default=8)
    p.add_argument("--sequences", type=int, default=12)
    p.add_argument("--strings", type=int, default=12000)
    args = p.parse_args()
    torch.set_num_threads(1)
    {"logits": write_logits, "top1": write_top1, "tokens": write_tokens}[args.what](args)


if __name__ == "__main__":
    main()
