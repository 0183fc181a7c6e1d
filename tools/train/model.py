# SPDX-License-Identifier: Apache-2.0
"""The reference models: the MoGE target (Pangu Pro MoE's architecture) and the dense draft.

Both are plain pre-norm decoders:

    h = embed[token]
    for each layer:
        h = h + attention(rmsnorm(h))
        h = h + ffn(rmsnorm(h))              # MoGE in the target, SwiGLU in the draft
    logits = head(rmsnorm(h))

The C engine is tested against this file, so it is written to be read: every formula once, in F32.
Training passes `dtype=torch.bfloat16`, which rounds the operands of matrix products; nothing else changes.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    arch: str  # "pangu-moe" (target) or "pangu-embedded" (dense draft)
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int  # the dense FFN, or the shared expert of the target
    expert_ffn: int = 0
    experts: int = 0
    groups: int = 8  # one expert of each group of experts/groups contiguous experts is active
    rope_theta: float = 10000.0
    eps: float = 1e-5
    context: int = 1024


def linear(x, weight, bias=None, dtype=None):
    """x W^T + b. The operands are rounded to dtype where one is given (training)."""
    if dtype is not None:
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return F.linear(x, weight, bias)


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rope(x, theta, start=0):
    """NEOX (rotate-half) rotary embedding over the whole head; x is [batch, head, time, dim],
    and its first row has position `start`.

    Element i of the first half is paired with element i of the second half, and the pair is turned by
    the angle position * theta^(-2i/dim).
    """
    time, dim = x.shape[-2:]
    freq = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(start, start + time, dtype=torch.float64)[:, None] * freq
    cos, sin = angle.cos().float(), angle.sin().float()
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with biases on q, k, v and o.

    `cache` is an empty dict at first; it collects the keys and values of earlier calls.
    """

    def __init__(self, c):
        super().__init__()
        self.c = c
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.q, self.k, self.v = nn.Linear(c.hidden, q), nn.Linear(c.hidden, kv), nn.Linear(c.hidden, kv)
        self.o = nn.Linear(q, c.hidden)

    def forward(self, x, dtype=None, cache=None):
        c, (batch, time, _) = self.c, x.shape
        start = cache["k"].shape[2] if cache else 0

        def heads(proj, n):  # [batch, head, time, dim]
            return linear(x, proj.weight, proj.bias, dtype).view(batch, time, n, c.head_dim).transpose(1, 2)

        q = rope(heads(self.q, c.heads), c.rope_theta, start)
        k = rope(heads(self.k, c.kv_heads), c.rope_theta, start)
        v = heads(self.v, c.kv_heads)
        if cache:
            k, v = torch.cat([cache["k"], k], dim=2), torch.cat([cache["v"], v], dim=2)
        if cache is not None:
            cache["k"], cache["v"] = k, v
        # Query head h reads key/value head h // (heads / kv_heads): fold the queries of one kv head together.
        share = c.heads // c.kv_heads
        q = q.reshape(batch, c.kv_heads, share * time, c.head_dim)
        score = (q @ k.transpose(-1, -2)).float() / math.sqrt(c.head_dim)
        score = score.view(batch, c.kv_heads, share, time, start + time)
        score = score + torch.full((time, start + time), -math.inf).triu(1 + start)
        prob = score.softmax(-1).to(v.dtype).view(batch, c.kv_heads, share * time, start + time)
        y = (prob @ v).view(batch, c.heads, time, c.head_dim).transpose(1, 2)
        return linear(y.reshape(batch, time, c.heads * c.head_dim), self.o.weight, self.o.bias, dtype)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), without biases."""

    def __init__(self, hidden, ffn):
        super().__init__()
        self.gate, self.up = nn.Linear(hidden, ffn, bias=False), nn.Linear(hidden, ffn, bias=False)
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x, dtype=None):
        h = F.silu(linear(x, self.gate.weight, None, dtype)) * linear(x, self.up.weight, None, dtype)
        return linear(h, self.down.weight, None, dtype)


class MoGE(nn.Module):
    """Mixture of grouped experts: softmax over all experts, then the best expert of every group.

        s   = softmax(router x)                       over ALL experts, in F32
        e_g = argmax of s in group g                  chosen by s alone
        y   = sum_g s[e_g] * scale[e_g] * E_{e_g}(x)  + Shared(x)     no renormalisation
    """

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.router = nn.Linear(c.hidden, c.experts, bias=False)
        # The chosen probabilities sum to about 0.3; the scale brings the routed part to a sensible size.
        self.router_scale = nn.Parameter(torch.full((c.experts,), float(c.experts) / c.groups))
        self.gate_up = nn.Parameter(torch.empty(c.experts, 2 * c.expert_ffn, c.hidden))  # gate rows, then up rows
        self.down = nn.Parameter(torch.empty(c.experts, c.hidden, c.expert_ffn))
        self.shared = SwiGLU(c.hidden, c.ffn)
        self.balance = None  # the balance loss of the last training forward

    def route(self, x):
        """x [n, hidden] -> chosen experts [n, groups], their weights [n, groups], probabilities [n, experts]."""
        c = self.c
        prob = F.linear(x.float(), self.router.weight).softmax(-1)
        size = c.experts // c.groups
        best, index = prob.view(-1, c.groups, size).max(-1)
        expert = index + torch.arange(c.groups) * size
        return expert, best * self.router_scale[expert], prob

    def forward(self, x, dtype=None):
        flat = x.reshape(-1, self.c.hidden)
        expert, weight, prob = self.route(flat)
        if self.training:
            self.balance = balance_loss(expert, prob, self.c)
        return (experts_forward(flat, expert, weight, self.gate_up, self.down, dtype).view(x.shape)
                + self.shared(x, dtype).float())


def balance_loss(expert, prob, c):
    """Equation 8 of the paper: sum_i f_i p_i, f_i = N / (K |B|) * (tokens that chose i), p_i = mean prob of i."""
    f = torch.bincount(expert.flatten(), minlength=c.experts) * (c.experts / expert.numel())
    return (f * prob.mean(0)).sum()


def experts_forward(x, expert, weight, gate_up, down, dtype=None):
    """The routed part: sum over the chosen experts of weight * E(x), computed expert by expert."""
    if dtype is not None:
        import dispatch  # the same sum, arranged for training speed
        return dispatch.experts_forward(x, expert, weight, gate_up, down, dtype)
    y = torch.zeros_like(x)
    for e in range(gate_up.shape[0]):
        token, slot = (expert == e).nonzero(as_tuple=True)
        if len(token):
            gate, up = F.linear(x[token], gate_up[e]).chunk(2, dim=-1)
            y.index_add_(0, token, F.linear(F.silu(gate) * up, down[e]) * weight[token, slot, None])
    return y


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(c.hidden, c.eps), Attention(c)
        self.ffn_norm = RMSNorm(c.hidden, c.eps)
        self.ffn = MoGE(c) if c.experts else SwiGLU(c.hidden, c.ffn)

    def forward(self, h, dtype=None, cache=None):
        h = h + self.attn(self.attn_norm(h), dtype, cache).float()
        return h + self.ffn(self.ffn_norm(h), dtype).float()


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c.vocab, c.hidden)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.hidden, c.eps)
        self.head = nn.Linear(c.hidden, c.vocab, bias=False)

    def init_weights(self, std=0.02):
        """Normal weights; the projections that write to the residual stream are smaller by sqrt(2 layers)."""
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() >= 2:
                out = name.endswith(("attn.o.weight", "down.weight", "ffn.down"))
                nn.init.normal_(p, std=std / math.sqrt(2 * self.c.layers) if out else std)
        return self

    def forward(self, tokens, dtype=None, caches=None):
        """tokens [batch, time] -> logits [batch, time, vocab]; caches: one dict a layer, from new_caches."""
        h = self.embed(tokens)
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks)):
            h = block(h, dtype, cache)
        return linear(self.norm(h), self.head.weight, None, dtype)

    def new_caches(self):
        return [{} for _ in self.blocks]

    def balance(self):
        """The mean balance loss of the layers, from the last forward in training mode."""
        return sum(b.ffn.balance for b in self.blocks) / len(self.blocks)

    def active_macs(self):
        """Multiply-adds for one token, attention over the context left out."""
        c = self.c
        attn = 2 * c.hidden * c.head_dim * (c.heads + c.kv_heads)
        ffn = 3 * c.hidden * (c.ffn + c.groups * c.expert_ffn * bool(c.experts)) + c.experts * c.hidden
        return c.layers * (attn + ffn) + c.vocab * c.hidden
