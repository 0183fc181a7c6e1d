#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Between the PyTorch models and GGUF files.

    export.py --dir DIR --out models      the trained pair of DIR/final.pt, and its tokenizer

Matrices are stored as F16; norms, biases, the router and router_scale as F32.
"""
import argparse
import os
import shutil

import numpy as np
import sentencepiece as spm
import torch

import gguf
from model import Config, Model

USER_DEFINED = ("[unused9]", "[unused10]")

# PyTorch name inside a block -> GGUF name. `gate_up` becomes two tensors.
BLOCK = {"attn_norm": "attn_norm", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v",
         "attn.o": "attn_output", "ffn_norm": "ffn_norm", "ffn.router": "ffn_gate_inp",
         "ffn.router_scale": "ffn_router_scale", "ffn.down": "ffn_down_exps",
         "ffn.shared.gate": "ffn_gate_shexp", "ffn.shared.up": "ffn_up_shexp", "ffn.shared.down": "ffn_down_shexp"}
DENSE = {**BLOCK, "ffn.gate": "ffn_gate", "ffn.up": "ffn_up", "ffn.down": "ffn_down"}
OUTSIDE = {"embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight"}


def gguf_name(name, moe):
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, n, inner = name.split(".", 2)
    stem, kind = inner, "weight"
    if inner.endswith((".weight", ".bias")):
        stem, kind = inner.rsplit(".", 1)
    return f"blk.{n}.{(BLOCK if moe else DENSE)[stem]}.{kind}"


def tokenizer_keys(path):
    sp = spm.SentencePieceProcessor(model_file=path)
    ids = range(sp.get_piece_size())

    def kind(i):
        if sp.is_unknown(i):
            return 2
        if sp.is_control(i):
            return 3
        if sp.is_unused(i):
            return 5
        if sp.is_byte(i):
            return 6
        return 4 if sp.id_to_piece(i) in USER_DEFINED else 1

    t = "tokenizer.ggml."
    return [(t + "model", "str", "llama"),
            (t + "tokens", "[str]", [sp.id_to_piece(i) for i in ids]),
            (t + "scores", "[f32]", [sp.get_score(i) for i in ids]),
            (t + "token_type", "[i32]", [kind(i) for i in ids]),
            (t + "bos_token_id", "u32", sp.bos_id()),
            (t + "eos_token_id", "u32", sp.eos_id()),
            (t + "unknown_token_id", "u32", sp.unk_id()),
            (t + "add_bos_token", "bool", True),
            (t + "add_eos_token", "bool", False),
            (t + "add_space_prefix", "bool", True),
            (t + "remove_extra_whitespaces", "bool", False)]


def model_keys(c, name):
    a = c.arch + "."
    keys = [("general.architecture", "str", c.arch), ("general.name", "str", name),
            ("general.alignment", "u32", gguf.ALIGN), ("general.file_type", "u32", 1),
            ("general.license", "str", "blessing"),
            (a + "block_count", "u32", c.layers), (a + "context_length", "u32", c.context),
            (a + "embedding_length", "u32", c.hidden), (a + "feed_forward_length", "u32", c.ffn),
            (a + "attention.head_count", "u32", c.heads), (a + "attention.head_count_kv", "u32", c.kv_heads),
            (a + "attention.key_length", "u32", c.head_dim), (a + "attention.value_length", "u32", c.head_dim),
            (a + "attention.layer_norm_rms_epsilon", "f32", c.eps), (a + "rope.freq_base", "f32", c.rope_theta),
            (a + "rope.dimension_count", "u32", c.head_dim), (a + "vocab_size", "u32", c.vocab)]
    if c.experts:
        keys += [(a + "expert_feed_forward_length", "u32", c.expert_ffn),
                 (a + "expert_shared_feed_forward_length", "u32", c.ffn), (a + "expert_count", "u32", c.experts),
                 (a + "expert_used_count", "u32", c.groups), (a + "expert_group_count", "u32", c.groups),
                 (a + "expert_weights_norm", "bool", False)]
    return keys


def save(model, tokenizer, path, name):
    """Writes the model with the SentencePiece model `tokenizer` inside."""
    tensors = []
    for key, p in model.state_dict().items():
        a = p.float().numpy()
        single = p.dim() < 2 or "router" in key
        parts = [(gguf_name(key, bool(model.c.experts)), a)] if not key.endswith("gate_up") else [
            (f"blk.{key.split('.')[1]}.ffn_{part}_exps.weight", half)
            for part, half in zip(("gate", "up"), np.split(a, 2, axis=1))]
        tensors += [(n, t if single else t.astype(np.float16)) for n, t in parts]
    gguf.write(path, model_keys(model.c, name) + tokenizer_keys(tokenizer), tensors)


def load(path):
    """Reads a GGUF file of either architecture into the F32 reference model."""
    keys, tensors = gguf.read(path)
    arch = keys["general.architecture"]

    def key(name, default=0):
        return keys.get(f"{arch}.{name}", default)

    c = Config(arch, vocab=key("vocab_size"), hidden=key("embedding_length"), layers=key("block_count"),
               heads=key("attention.head_count"), kv_heads=key("attention.head_count_kv"),
               head_dim=key("attention.key_length"), ffn=key("feed_forward_length"),
               expert_ffn=key("expert_feed_forward_length"), experts=key("expert_count"),
               groups=key("expert_group_count", 8), rope_theta=key("rope.freq_base"),
               # The file holds F32; the formula's constant is the decimal number.
               eps=float(np.format_float_positional(np.float32(key("attention.layer_norm_rms_epsilon")))),
               context=key("context_length"))
    model = Model(c)
    for name, p in model.state_dict().items():
        if name.endswith("gate_up"):
            n = name.split(".")[1]
            a = np.concatenate([tensors[f"blk.{n}.ffn_{x}_exps.weight"] for x in ("gate", "up")], axis=1)
        else:
            a = tensors[gguf_name(name, bool(c.experts))]
        p.copy_(torch.from_numpy(a.copy()))
    return model.eval()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--dir", required=True)
    p.add_argument("--out", default="models")
    p.add_argument("--checkpoint", default="final.pt")
    args = p.parse_args()
    from train import DRAFT, TARGET
    state = torch.load(f"{args.dir}/{args.checkpoint}")
    shutil.copy(args.dir + "/tokenizer.model", args.out + "/tokenizer.model")
    for part, c in (("target", TARGET), ("draft", DRAFT)):
        model = Model(c)
        model.load_state_dict(state[part])
        path = f"{args.out}/moge-embedded-{part}.gguf"
        save(model, args.dir + "/tokenizer.model", path, f"moge-embedded-{part}")
        print(f"{path}: {os.path.getsize(path) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
