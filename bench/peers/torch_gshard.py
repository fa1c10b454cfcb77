"""Runs the layers of a Python file that defines `MoE` and `HeirarchicalMoE` as lucidrains' mixture-of-experts does. The file is named, not contained.

Arguments: threads, the file. A line of JSON on standard input gets a line on standard output:
  {"do": "make", "experts": [E] or [A, B], "width", "hidden", "policy", "capacity", "shape": [batch, length], "data": FILE, "whole": bool}
      makes the layer. FILE holds float32: x, the gates' weights (outer, inner), and if `whole` the experts' weights
                                 -> {"tokens", "used", "dropped", "finite"}
  {"do": "outputs", "to": FILE}  writes output, gradient of x for the loss `sum(output * x)`, and the auxiliary loss    -> {}
  {"do": "time"}                 -> {"seconds"} of one forward and backward pass
"""

import importlib.machinery
import importlib.util
import json
import sys
import time

import torch


def load(path):
    loader = importlib.machinery.SourceFileLoader("peer", path)  # whatever the file is called
    spec = importlib.util.spec_from_loader("peer", loader)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensors(path, shapes):
    """The tensors of a file, one after another."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    flat = torch.from_file(path, size=sum(sizes), dtype=torch.float32)
    return [part.clone().view(shape) for part, shape in zip(flat.split(sizes), shapes)]


class Layer:
    def __init__(self, module, experts, width, hidden, policy, capacity, shape, data, whole, **_):
        torch.manual_seed(0)
        deep = len(experts) == 2
        make = module.HeirarchicalMoE if deep else module.MoE
        self.layer = make(
            dim=width,
            num_experts=tuple(experts) if deep else experts[0],
            hidden_dim=hidden,
            second_policy_train=policy,
            capacity_factor_train=capacity,
        ).train()
        gates = [self.layer.gate_outer, self.layer.gate_inner] if deep else [self.layer.gate]
        weights = [gate.w_gating for gate in gates] + ([self.layer.experts.w1, self.layer.experts.w2] if whole else [])
        x, *given = tensors(data, [[*shape, width], *[weight.shape for weight in weights]])
        for weight, values in zip(weights, given):
            weight.data.copy_(values)
        self.x = x.requires_grad_()
        self.factor = torch.randn(x.shape)
        self.dispatched = []
        hooks = [gate.register_forward_hook(lambda _, __, out: self.dispatched.append(out[0].detach())) for gate in gates]
        with torch.no_grad():
            y, aux = self.layer(x)
        for hook in hooks:
            hook.remove()
        self.finite = bool(y.isfinite().all() and aux.isfinite())

    def routed(self):
        """How many assignments reach an expert, and the share of tokens that none has."""
        outer, *inner = self.dispatched
        if inner:
            # (group, batch, slot): experts that a slot of a group uses, brought back to its token.
            slots = inner[0].sum(dim=(-1, -2))
            per_token = torch.einsum("bnec,ebc->bn", outer, slots)
        else:
            per_token = outer.sum(dim=(-1, -2))
        self.dispatched = []
        return {
            "tokens": per_token.numel(),
            "used": int(per_token.sum()),
            "dropped": float((per_token == 0).float().mean()),
            "finite": self.finite,
        }

    def clear(self):
        self.layer.zero_grad(set_to_none=True)
        self.x.grad = None

    def outputs(self, path):
        y, aux = self.layer(self.x)
        (y * self.x.detach()).sum().backward()
        flat = torch.cat([y.detach().flatten(), self.x.grad.flatten(), aux.detach().flatten()])
        torch.from_file(path, shared=True, size=flat.numel(), dtype=torch.float32).copy_(flat)
        self.clear()
        return {}

    def time(self):
        begun = time.perf_counter()
        y, aux = self.layer(self.x)
        ((y * self.factor).mean() + aux).backward()
        seconds = time.perf_counter() - begun
        self.clear()
        return {"seconds": seconds}


def main():
    torch.set_num_threads(int(sys.argv[1]))
    try:
        module = load(sys.argv[2])
    except Exception as error:  # whatever that file does
        print(json.dumps({"missing": f"{sys.argv[2]} cannot be loaded as Python ({type(error).__name__}: {error})"}), flush=True)
        return
    for name in ("MoE", "HeirarchicalMoE"):
        if not hasattr(module, name):
            print(json.dumps({"missing": f"{sys.argv[2]} defines no {name}"}), flush=True)
            return
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    layer = None
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "make":
            layer = None  # the old one's memory first
            layer = Layer(module, **asked)
            answer = layer.routed()
        elif asked["do"] == "outputs":
            answer = layer.outputs(asked["to"])
        else:
            answer = layer.time()
        print(json.dumps(answer), flush=True)


main()
