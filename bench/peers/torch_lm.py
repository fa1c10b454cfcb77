"""A straightforward PyTorch language model of the paper's kind: embedding, LSTM, MoE (torch_moe.py), LSTM, sampled softmax, Adam.

Gradients of the embedding and of the softmax are sparse, with SparseAdam: with dense ones PyTorch would spend most of a step on words not in it.
Answers on standard input, one line each: an object with the sizes and "inputs" and "targets", T·B words each -> {"seconds", "loss"} of one training step.
"""

import json
import math
import sys
import time

import torch
import torch.nn.functional as functional
from torch_moe import Moe


class LanguageModel(torch.nn.Module):
    def __init__(self, vocab, width, experts, k, dropout):
        super().__init__()
        self.vocab = vocab
        self.embedding = torch.nn.Embedding(vocab, width, sparse=True)
        self.first = torch.nn.LSTM(width, width)
        self.moe = Moe(experts, width, 2 * width, k)
        self.second = torch.nn.LSTM(width, width)
        self.softmax = torch.nn.Embedding(vocab, width, sparse=True)
        self.bias = torch.nn.Embedding(vocab, 1, sparse=True)
        self.dropout = torch.nn.Dropout(dropout)
        for parameter, std in ((self.embedding, width**-0.5), (self.softmax, width**-0.5), (self.bias, 0.0)):
            torch.nn.init.normal_(parameter.weight, std=std)

    def forward(self, inputs, targets, states, sampled):
        x = self.dropout(self.embedding(inputs))
        y, first = self.first(x, states[0])
        x = x + self.dropout(y)
        y, aux = self.moe(x.flatten(0, 1))
        x = x + self.dropout(torch.sigmoid(y)).view_as(x)
        y, second = self.second(x, states[1])
        x = (x + self.dropout(y)).flatten(0, 1)
        return self.loss(x, targets.flatten(), sampled) + aux, [first, second]

    def loss(self, x, targets, sampled):
        """Sampled softmax over log-uniform classes, as TensorFlow's: corrected by their expected counts, accidental hits left out."""
        drawn = (torch.rand(16 * sampled) * math.log(self.vocab + 1)).exp().long().sub(1).clamp(0, self.vocab - 1)
        distinct, of = drawn.unique(return_inverse=True)
        first = torch.full_like(distinct, len(drawn)).scatter_reduce(0, of, torch.arange(len(drawn)), "amin")
        when, order = first.sort()
        if len(order) < sampled:
            raise ValueError(f"expected {sampled} classes among {len(drawn)} draws from {self.vocab}, got {len(order)}")
        classes, tries = distinct[order[:sampled]], when[sampled - 1].item() + 1
        logits = x @ self.softmax(classes).T + self.bias(classes)[:, 0] - self.log_count(classes, tries)
        logits = logits.masked_fill(targets[:, None] == classes, -1e30)
        true = (x * self.softmax(targets)).sum(1) + self.bias(targets)[:, 0] - self.log_count(targets, tries)
        return functional.cross_entropy(torch.cat([true[:, None], logits], 1), torch.zeros_like(targets))

    def log_count(self, classes, tries):
        p = ((classes + 2.0) / (classes + 1.0)).log() / math.log(self.vocab + 1)
        return (-torch.expm1(tries * torch.log1p(-p))).log()


def main():
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    model = None
    for line in sys.stdin:
        work = json.loads(line)
        shape = (work["timeSteps"], work["batchSize"])
        if model is None:
            torch.manual_seed(0)
            model = LanguageModel(work["vocabSize"], work["hiddenSize"], work["experts"], work["topK"], work["dropout"])
            rare = [model.embedding.weight, model.softmax.weight, model.bias.weight]
            often = [p for p in model.parameters() if all(p is not r for r in rare)]
            optimizers = [torch.optim.Adam(often, lr=1e-3, foreach=True), torch.optim.SparseAdam(rare, lr=1e-3)]
            states = [None, None]
        inputs, targets = (torch.tensor(work[name]).view(shape) for name in ("inputs", "targets"))
        begun = time.perf_counter()
        loss, states = model(inputs, targets, states, work["sampled"])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        states = [tuple(s.detach() for s in pair) for pair in states]
        seconds = time.perf_counter() - begun
        print(json.dumps({"seconds": seconds, "loss": loss.item()}), flush=True)


if __name__ == "__main__":
    main()
