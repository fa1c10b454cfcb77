"""A straightforward PyTorch MoE layer: noisy top-k gate with both balance losses, a loop over experts, index_add.

Answers on standard input, one line each: `moe E ROWS D F K` -> seconds of one forward and backward pass.
"""

import json
import sys
import time

import torch
import torch.nn.functional as functional


class NoisyTopK(torch.nn.Module):
    """Section 2.1 and Appendix A of Shazeer et al. 2017."""

    def __init__(self, width, experts, k):
        super().__init__()
        self.k = k
        self.w_gate = torch.nn.Parameter(torch.zeros(width, experts))
        self.w_noise = torch.nn.Parameter(torch.zeros(width, experts))

    def forward(self, x):
        clean = x @ self.w_gate
        std = functional.softplus(x @ self.w_noise)
        noisy = clean + torch.randn_like(clean) * std
        top, index = noisy.topk(self.k + 1, dim=1)
        gates = top[:, : self.k].softmax(dim=1)
        dense = torch.zeros_like(noisy).scatter(1, index[:, : self.k], gates)
        inside = noisy > top[:, self.k :]
        threshold = torch.where(inside, top[:, self.k :], top[:, self.k - 1 : self.k])
        load = torch.distributions.Normal(0.0, 1.0).cdf((clean - threshold) / std).sum(0)
        aux = cv2(dense.sum(0)) + cv2(load)
        return gates, index[:, : self.k], 0.1 * aux


def cv2(v):
    return v.var(unbiased=False) / (v.mean() ** 2 + 1e-10)


class Moe(torch.nn.Module):
    def __init__(self, experts, width, hidden, k):
        super().__init__()
        self.gate = NoisyTopK(width, experts, k)
        self.experts = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Linear(width, hidden, bias=False), torch.nn.ReLU(), torch.nn.Linear(hidden, width, bias=False)
            )
            for _ in range(experts)
        )

    def forward(self, x):
        gates, index, aux = self.gate(x)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            row, slot = (index == e).nonzero(as_tuple=True)
            if row.numel() > 0:
                y = y.index_add(0, row, expert(x[row]) * gates[row, slot, None])
        return y, aux


def main():
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    made = {}
    for line in sys.stdin:
        _, *numbers = line.split()
        experts, rows, width, hidden, k = map(int, numbers)
        if line not in made:
            torch.manual_seed(0)
            made[line] = (Moe(experts, width, hidden, k), torch.randn(rows, width, requires_grad=True), torch.randn(rows, width))
        moe, x, weights = made[line]
        begun = time.perf_counter()
        y, aux = moe(x)
        ((y * weights).mean() + aux).backward()
        seconds = time.perf_counter() - begun
        moe.zero_grad(set_to_none=True)
        x.grad = None
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
