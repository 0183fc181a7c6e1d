#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the target and the draft in one run, on a clock.

    train.py --dir DIR --minutes 65          train both from scratch (or go on after --resume)
    train.py --dir DIR --distill 10          then: the draft alone, against the frozen target

The target learns by cross entropy plus the balance loss. The draft never sees the text as a goal: it
learns the target's distribution on the same batch. The schedule follows the share of the time budget
that is used up, so the run ends when it should on any machine.
"""
import argparse
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F

from model import Config, Model
from optim import Optimizer

TARGET = Config("pangu-moe", vocab=4096, hidden=256, layers=10, heads=4, kv_heads=2, head_dim=64, ffn=256,
                expert_ffn=64, experts=32)
DRAFT = Config("pangu-embedded", vocab=4096, hidden=96, layers=2, heads=3, kv_heads=1, head_dim=32, ffn=256)
BATCH_TOKENS = 4096
BALANCE = 0.01  # alpha of equation 8, for every layer
# (share of the budget, window): short windows first because attention is dear, long ones so that
# the declared context has been seen.
WINDOWS = ((0.70, 256), (0.90, 512), (1.01, 1024))
BF16 = torch.bfloat16


class Windows:
    """Cuts the token stream into windows, in a new random order and at a new offset in every pass."""

    def __init__(self, path, seed=1):
        self.data = torch.from_numpy(np.fromfile(path, dtype=np.uint16).astype(np.int64))
        self.random = np.random.default_rng(seed)
        self.length, self.starts = 0, []

    def batch(self, length):
        """tokens, next tokens: [BATCH_TOKENS / length, length] each."""
        n = BATCH_TOKENS // length
        if length != self.length or len(self.starts) < n:
            self.length = length
            starts = np.arange(self.random.integers(length), len(self.data) - length - 1, length)
            self.starts = self.random.permutation(starts).tolist()
        rows = torch.stack([self.data[s:s + length + 1] for s in (self.starts.pop() for _ in range(n))])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def schedule(done):
    """Learning rate factor at a share `done` of the budget: warm up, hold, fall to nearly nothing."""
    return min(1.0, done / 0.02 + 0.02, (1.0 - done) / 0.55 + 0.01)


def kl(target_prob, target_logp, draft_logits):
    logq = F.log_softmax(draft_logits.float(), -1)
    return (target_prob * (target_logp - logq)).sum(-1).mean()


@torch.no_grad()
def bits_per_byte(model, data, size, tokens=1 << 15, window=512):
    """Held-out loss on the first `tokens` tokens; `size` is bytes per token of the held-out text."""
    model.eval()
    n = min(tokens, len(data) - 1) // window
    rows = data[:n * window].view(n, window)
    goals = data[1:n * window + 1].view(n, window)
    loss = [F.cross_entropy(model(a, BF16).float().flatten(0, 1), b.flatten()).item()
            for a, b in zip(rows.split(8), goals.split(8))]
    model.train()
    return sum(loss) / len(loss) / math.log(2) / size


def save(path, **state):
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)


def train(args):
    target, draft = Model(TARGET).init_weights(), Model(DRAFT).init_weights()
    optimizers = Optimizer(target), Optimizer(draft)
    windows = Windows(args.dir + "/train.bin")
    spent, tokens = 0.0, 0
    path = args.dir + "/checkpoint.pt"
    if args.resume:
        c = torch.load(path)
        target.load_state_dict(c["target"])
        draft.load_state_dict(c["draft"])
        for o, s in zip(optimizers, c["optimizers"]):
            o.load_state_dict(s)
        spent, tokens, windows.random = c["spent"], c["tokens"], c["random"]
    for name, m in (("target", target), ("draft", draft)):
        print(f"{name}: {sum(p.numel() for p in m.parameters()) / 1e6:.2f} M parameters, "
              f"{m.active_macs() / 1e6:.2f} M multiply-adds a token", flush=True)
    held = torch.from_numpy(np.fromfile(args.dir + "/heldout.bin", dtype=np.uint16).astype(np.int64))
    size = os.path.getsize(args.dir + "/heldout.txt") / len(held)
    budget, step, last_save, last_eval = args.minutes * 60, 0, time.time(), time.time()
    mean, begin, fresh = None, time.time(), 0
    while spent < budget:
        t0 = time.time()
        done = spent / budget
        x, y = windows.batch(next(w for share, w in WINDOWS if done < share))
        logits = target(x, BF16).float()
        logp = F.log_softmax(logits, -1)
        loss = F.nll_loss(logp.flatten(0, 1), y.flatten())
        balance = target.balance()
        (loss + BALANCE * TARGET.layers * balance).backward()
        logp = logp.detach()
        draft_loss = kl(logp.exp(), logp, draft(x, BF16))
        draft_loss.backward()
        for o in optimizers:
            o.step(schedule(done))
        now = torch.tensor([loss.item(), draft_loss.item(), balance.item()])
        mean = now if mean is None or not now.isfinite().all() else mean.lerp(now, 0.05)
        step, tokens, fresh = step + 1, tokens + x.numel(), fresh + x.numel()
        spent += time.time() - t0
        if step % 20 == 0:
            print(f"{time.strftime('%H:%M:%S')} {100 * spent / budget:5.1f}% step {step} tokens {tokens / 1e6:.2f}M "
                  f"{fresh / (time.time() - begin):.0f} tok/s loss {mean[0]:.3f} draft kl {mean[1]:.3f} "
                  f"balance {mean[2]:.3f} left {(budget - spent) / 60:.1f} min", flush=True)
        end = spent >= budget
        if time.time() - last_eval > 480 or end:
            print(f"held out: {bits_per_byte(target, held, size):.3f} bits a byte, "
                  f"draft {bits_per_byte(draft, held, size):.3f}", flush=True)
            last_eval = time.time()
        if time.time() - last_save > 240 or end:
            save(path, target=target.state_dict(), draft=draft.state_dict(), spent=spent, tokens=tokens,
                 optimizers=[o.state_dict() for o in optimizers], random=windows.random)
            last_save = time.time()


@torch.no_grad()
def generate(model, prompts, count, temperature, dtype=None, noise=None):
    """Continues prompts [batch, time] by count tokens. temperature [batch]: 0 is greedy.

    The token is the argmax of logits + temperature * Gumbel noise, which samples from the softmax.
    """
    caches, tokens, out = model.new_caches(), prompts, []
    for i in range(count):
        logits = model(tokens, dtype, caches)[:, -1].float()
        gumbel = noise[:, i] if noise is not None else -torch.empty_like(logits).exponential_().log()
        tokens = (logits + temperature[:, None] * gumbel).argmax(-1, keepdim=True)
        out.append(tokens)
    return torch.cat(out, dim=1)


def distill(args):
    """The draft alone, against the frozen target: on the text, and on what the target itself writes."""
    path = args.dir + "/checkpoint.pt"
    c = torch.load(path)
    target, draft = Model(TARGET), Model(DRAFT)
    target.load_state_dict(c["target"])
    draft.load_state_dict(c["draft"])
    target.eval()
    optimizer = Optimizer(draft)
    optimizer.load_state_dict(c["optimizers"][1])
    windows = Windows(args.dir + "/train.bin", seed=2)
    held = torch.from_numpy(np.fromfile(args.dir + "/heldout.bin", dtype=np.uint16).astype(np.int64))
    held = held[:BATCH_TOKENS * 8].view(-1, 8, 512)
    budget, begin, step, written, mean = args.distill * 60, time.time(), 0, [], None

    def report():
        with torch.no_grad():
            pairs = [(target(x, BF16).float(), draft(x, BF16).float()) for x in held]
        same = torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in pairs]).float().mean()
        tv = torch.stack([(a.softmax(-1) - b.softmax(-1)).abs().sum(-1).mean() / 2 for a, b in pairs]).mean()
        print(f"held out: greedy agreement {same:.4f}, total variation {tv:.4f}", flush=True)

    report()
    # A quarter of the time goes into sequences that the target writes: half greedy, half at temperature 1.
    hot = torch.arange(256) % 2.0
    while not written or time.time() - begin < budget / 4:
        prompts = torch.cat([windows.batch(64)[0] for _ in range(4)])
        written.append(torch.cat([prompts, generate(target, prompts, 192, hot, BF16)], dim=1))
        print(f"{time.strftime('%H:%M:%S')} {len(written) * written[0].numel()} tokens written", flush=True)
    written = torch.cat(written)
    while time.time() - begin < budget:
        done = (time.time() - begin) / budget
        x = (windows.batch(256)[0] if step % 3 else written[torch.randint(len(written), (BATCH_TOKENS // 256,))])
        with torch.no_grad():
            logp = F.log_softmax(target(x, BF16).float(), -1)
            prob = logp.exp()
        logits = draft(x, BF16).float()
        # The total variation distance is what the acceptance of guesses depends on.
        tv = (prob - logits.softmax(-1)).abs().sum(-1).mean() / 2
        loss = kl(prob, logp, logits)
        (loss + tv).backward()
        optimizer.step(0.5 * min(1.0, step / 20, (1 - done) / 0.7 + 0.01))
        now = torch.tensor([loss.item(), tv.item()])
        mean = now if mean is None else mean.lerp(now, 0.05)
        step += 1
        if step % 40 == 0:
            print(f"{time.strftime('%H:%M:%S')} {100 * done:5.1f}% step {step} kl {mean[0]:.3f} tv {mean[1]:.3f}", flush=True)
    report()
    save(args.dir + "/final.pt", target=target.state_dict(), draft=draft.state_dict())


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--dir", required=True)
    p.add_argument("--minutes", type=float, default=65)
    p.add_argument("--resume", action="store_true")
    p.add_argument("--distill", type=float, default=0)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    if args.distill:
        distill(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
