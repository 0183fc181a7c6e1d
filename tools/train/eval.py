#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Measures a target and its draft on held-out text; prints Markdown for the model card.

    eval.py [--models models] [--text tests/golden/heldout.txt]

Bits per byte: mean loss over windows of the declared context, divided by the bytes of the text.
Agreement at position i: of the places where guesses 1..i-1 were right, the share where guess i is
right too. The draft writes its guesses one after the other, as it does in the daemon. At
temperature 1 both models pick argmax(logit + Gumbel noise) with the same noise (shared-noise
coupling). With d the total variation distance at one place, that agreement is at least
(1-d)/(1+d), and no coupling exceeds 1-d; the table gives the means of both over the same places.
"""
import argparse
import math

import sentencepiece as spm
import torch
import torch.nn.functional as F

import export
from train import generate

PROMPTS = ("SQLite is", "The query planner", "If the database file is", "static int btree", "int sqlite3_step(")


def windows(text, sp, length):
    ids = torch.tensor(sp.encode(text))
    n = len(ids) // (length - 1)
    rows = ids[:n * (length - 1)].view(n, length - 1)
    return torch.cat([torch.ones(n, 1, dtype=torch.long), rows], dim=1)  # every window starts with <s>


def loss_of(model, rows):
    """Sum of the losses in nats of all tokens but the first of every window."""
    return sum(F.cross_entropy(model(r[:, :-1]).flatten(0, 1), r[:, 1:].flatten(), reduction="sum").item()
               for r in rows.split(2))


def distances(a, b):
    """Total variation distance of two batches of logits."""
    return (a.softmax(-1) - b.softmax(-1)).abs().sum(-1) / 2


def gumbel(shape, rng):
    return -torch.empty(shape).exponential_(generator=rng).log()


def everywhere(target, draft, rows, rng):
    """First-guess agreement at every place of rows: greedy, sampled, bound, optimum, mean distance."""
    greedy, sampled, d = [], [], []
    for r in rows.split(2):
        a, b = target(r).flatten(0, 1), draft(r).flatten(0, 1)
        noise = gumbel(a.shape, rng)
        greedy.append(a.argmax(-1) == b.argmax(-1))
        sampled.append((a + noise).argmax(-1) == (b + noise).argmax(-1))
        d.append(distances(a, b))
    d = torch.cat(d)
    return (torch.cat(greedy).float().mean(), torch.cat(sampled).float().mean(), ((1 - d) / (1 + d)).mean(),
            (1 - d).mean(), d.mean())


def by_position(target, draft, prompts, temperature, rng, count=4):
    """Per position: places left, agreement, bound, optimum."""
    hot = torch.full((len(prompts),), float(temperature))
    noise = gumbel((len(prompts), count, target.c.vocab), rng)
    truth = torch.cat([generate(target, p, count, h, noise=n)
                       for p, h, n in zip(prompts.split(32), hot.split(32), noise.split(32))])
    guess = torch.cat([generate(draft, p, count, h, noise=n)
                       for p, h, n in zip(prompts.split(32), hot.split(32), noise.split(32))])
    alive, out = torch.ones(len(prompts), dtype=torch.bool), []
    for i in range(count):
        # Where all guesses so far were right both models stand at the same place: compare them there.
        seen = torch.cat([prompts, truth[:, :i]], dim=1)[alive]
        d = torch.cat([distances(target(s)[:, -1], draft(s)[:, -1]) for s in seen.split(32)])
        right = truth[:, i] == guess[:, i]
        out.append((int(alive.sum()), right[alive].float().mean(), ((1 - d) / (1 + d)).mean(), (1 - d).mean()))
        alive &= right
    return out


@torch.no_grad()
def main():
    p = argparse.ArgumentParser()
    p.add_argument("--models", default="models")
    p.add_argument("--text", default="tests/golden/heldout.txt")
    p.add_argument("--places", type=int, default=768)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    rng = torch.Generator().manual_seed(1)
    target, draft = (export.load(f"{args.models}/moge-embedded-{x}.gguf") for x in ("target", "draft"))
    sp = spm.SentencePieceProcessor(model_file=args.models + "/tokenizer.model")
    with open(args.text, encoding="utf-8") as f:
        text = f.read()
    rows = windows(text, sp, target.c.context)
    per_byte = math.log(2) * len(sp.decode(rows[:, 1:].flatten().tolist()).encode())
    print("| | target | draft |\n| --- | --- | --- |")
    print(f"| bits per byte, held out | {loss_of(target, rows) / per_byte:.3f} | {loss_of(draft, rows) / per_byte:.3f} |")
    for m in (256, 512, 1024):  # a longer context must not hurt
        r = windows(text, sp, m)
        tail = sum(F.cross_entropy(target(x)[:, -129:-1].flatten(0, 1), x[:, -128:].flatten(), reduction="sum").item()
                   for x in r.split(2)) / (128 * len(r))
        print(f"| nats per token, last 128 of {m} | {tail:.3f} | |")
    print("\n| first guess | greedy | T=1, shared noise | bound (1-d)/(1+d) | optimum 1-d | mean d |\n" + "| --- " * 6 + "|")
    starts = windows(text, sp, 65)
    starts = starts[torch.randperm(len(starts), generator=rng)[:48]]
    hot = torch.arange(len(starts)) % 2.0
    written = torch.cat([starts, generate(target, starts, 256, hot)], dim=1)
    for name, r in (("held-out text", rows), ("written by the target, greedy", written[hot == 0]),
                    ("written by the target, T=1", written[hot == 1])):
        print(f"| {name} ({r.numel()} places) | " + " | ".join(f"{v:.3f}" for v in everywhere(target, draft, r, rng)) + " |")
    # Prompts of 128 tokens from everywhere in the held-out text.
    cut = windows(text, sp, 128)
    prompts = cut[torch.randperm(len(cut), generator=rng)[:args.places]]
    print("\n| position | greedy | T=1, shared noise | bound | optimum |\n" + "| --- " * 5 + "|")
    cold, warm = (by_position(target, draft, prompts, t, rng) for t in (0, 1))
    for i, (g, s) in enumerate(zip(cold, warm)):
        print(f"| {i + 1} | {g[1]:.3f} ({g[0]} places) | {s[1]:.3f} ({s[0]} places) | {s[2]:.3f} | {s[3]:.3f} |")
    for prompt in PROMPTS:
        for t in (0.0, 0.8):
            ids = torch.tensor([[1] + sp.encode(prompt)])
            out = generate(target, ids, 120, torch.tensor([t]))[0].tolist()
            out = out[:out.index(2)] if 2 in out else out
            print(f"\nPrompt `{prompt}`, temperature {t}:\n\n```\n{sp.decode(ids[0, 1:].tolist() + out)}\n```")


if __name__ == "__main__":
    main()
