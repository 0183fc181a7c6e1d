# SPDX-License-Identifier: Apache-2.0
"""Muon for the matrices inside the blocks, Adam for everything else.

Muon (Jordan et al., 2024) takes the momentum of a matrix and replaces it by the nearest orthogonal
matrix, so every direction is learned at the same rate. It reaches a given loss in noticeably fewer tokens
than Adam, and tokens are what this recipe is short of.
"""
import torch


def orthogonal(g, steps=5):
    """Newton-Schulz iteration towards the orthogonal factor of every matrix of g [n, rows, cols]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = g.transpose(-1, -2) if tall else g
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16().contiguous()
    for _ in range(steps):
        s = x @ x.transpose(-1, -2)
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.transpose(-1, -2) if tall else x).float()


class Optimizer:
    def __init__(self, model, matrix_lr=0.02, other_lr=0.004, decay=0.05):
        self.matrix_lr, self.other_lr, self.decay = matrix_lr, other_lr, decay
        self.matrices, self.others = [], []
        for name, p in model.named_parameters():
            inner = name.startswith("blocks.") and p.dim() >= 2 and "router" not in name
            (self.matrices if inner else self.others).append((name, p))
        self.state = {name: {} for name, _ in self.matrices + self.others}
        self.step_count = 0

    @torch.no_grad()
    def step(self, scale):
        """One update; scale multiplies both learning rates (the schedule)."""
        self.step_count += 1
        for name, p in self.matrices:
            m = self.state[name].setdefault("m", torch.zeros_like(p))
            m.lerp_(p.grad, 0.05)
            g = p.grad.lerp(m, 0.95)  # Nesterov
            # gate_up stacks two matrices per expert: each is its own.
            rows = p.shape[1] // 2 if name.endswith("gate_up") else p.shape[-2]
            u = orthogonal(g.view(-1, rows, p.shape[-1])).view_as(p)
            p.mul_(1 - scale * self.matrix_lr * self.decay)
            p.add_(u, alpha=-scale * self.matrix_lr * max(1, rows / p.shape[-1]) ** 0.5)
            p.grad = None
        b1, b2 = 0.9, 0.98
        fix1, fix2 = 1 - b1 ** self.step_count, 1 - b2 ** self.step_count
        for name, p in self.others:
            s = self.state[name]
            m, v = s.setdefault("m", torch.zeros_like(p)), s.setdefault("v", torch.zeros_like(p))
            m.lerp_(p.grad, 1 - b1)
            v.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
            p.addcdiv_(m, (v / fix2).sqrt_().add_(1e-9), value=-scale * self.other_lr / fix1)
            p.grad = None

    def state_dict(self):
        return {"state": self.state, "step": self.step_count}

    def load_state_dict(self, d):
        self.state, self.step_count = d["state"], d["step"]
