#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a tiny pair with random weights, and its tokenizer, for tests: tiny.py TEXT OUT_DIR

The weights are large enough that logits differ by several units and the best token varies.
"""
import sys

import torch

import data
import export
from model import Config, Model


def random_model(config, seed):
    torch.manual_seed(seed)
    model = Model(config)
    for name, p in model.named_parameters():
        with torch.no_grad():
            if name == "embed.weight":
                p.normal_(std=1.0)
            elif name.endswith("norm.weight"):
                p.normal_(1.0, 0.1)
            elif name.endswith("router_scale"):
                p.uniform_(1.5, 2.5)
            elif p.dim() == 1:  # biases
                p.normal_(std=0.1)
            else:  # rows of length n: products of unit size, twice that in the router and the head
                gain = 2.0 if "router" in name or name.startswith("head") else 1.0
                p.normal_(std=gain / p.shape[-1] ** 0.5)
    return model


def main(text, out):
    vocab, tokenizer = 512, out + "/tiny-tokenizer.model"
    data.train_tokenizer(text, tokenizer, vocab)
    target = Config("pangu-moe", vocab, hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=128,
                    expert_ffn=32, experts=16, context=512)
    draft = Config("pangu-embedded", vocab, hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, ffn=64,
                   context=512)
    export.save(random_model(target, 1), tokenizer, out + "/tiny-target.gguf", "tiny-target")
    export.save(random_model(draft, 2), tokenizer, out + "/tiny-draft.gguf", "tiny-draft")


if __name__ == "__main__":
    main(*sys.argv[1:])
