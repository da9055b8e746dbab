# SPDX-License-Identifier: Apache-2.0
"""Models and losses whose exact diagonals are known, and the dense definition."""

import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.nn import functional as F

from hesse import Risk

DOUBLE = torch.float64
EXACT = 1e-12
V = 5  # classes and tokens


def randn(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def labels(*shape):
    return torch.randint(0, V, shape)


def padded(*shape):
    y = labels(*shape)
    y[0, -2:] = -100
    return y


def mlp(inputs=4, outputs=V):
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


class TinyGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.places = nn.Embedding(V, 4), nn.Parameter(torch.randn(9, 4))
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.places[: tokens.shape[1]]
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x @ self.embedding.weight.T


class Sequences(nn.Module):
    """A layer of torch over sequences, and a linear one."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, V)

    def forward(self, x):
        inputs = (x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else (x,)
        return self.head(self.layer(*inputs)[0])


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, V)

    def forward(self, left, right, **_):
        return {"logits": self.b(torch.tanh(self.a(left) + right))}


class Normed(nn.Module):
    """A convolution of one dimension, GroupNorm, BatchNorm in eval mode, and a mean."""

    def __init__(self, convolution):
        super().__init__()
        self.convolution = convolution
        self.norms = nn.Sequential(nn.GroupNorm(2, 6), nn.BatchNorm1d(6))
        self.head = nn.Linear(6, V)

    def forward(self, x):
        return self.head(torch.tanh(self.norms(self.convolution(x))).mean(-1))


class OwnLoss(nn.Module):
    """A model that computes its own loss, as those of transformers do."""

    def __init__(self):
        super().__init__()
        self.gpt = TinyGPT()

    def forward(self, input_ids, labels):
        logits = self.gpt(input_ids)
        return {"loss": F.cross_entropy(logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1))}


def flattened(z, y):
    return F.cross_entropy(z.reshape(-1, V), y.reshape(-1))


def conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2, stride=2),
        nn.Tanh(), nn.Flatten(), nn.Linear(16, V),
    )  # fmt: skip


def tokens_that_count(inputs, targets):
    return float((targets != -100).sum())


WEIGHTS = torch.linspace(0.5, 2.0, V, dtype=DOUBLE)
CE = nn.CrossEntropyLoss

# name -> (model, loss, n -> a batch of n examples)
MODELS = {
    "mlp": (mlp, CE(), lambda n: (randn(n, 4), labels(n))),
    "class weights, ignored": (
        mlp, CE(WEIGHTS, ignore_index=1, label_smoothing=0.1),
        lambda n: (randn(n, 4), torch.arange(n) % V),
    ),
    "grouped convolutions": (conv_net, CE(), lambda n: (randn(n, 2, 6, 6), labels(n))),
    "strided": (
        lambda: Normed(nn.Conv1d(4, 6, 3, stride=2, dilation=2)), CE(),
        lambda n: (randn(n, 4, 9), labels(n)),
    ),
    "transposed": (
        lambda: Normed(nn.ConvTranspose1d(4, 6, 3, stride=2)), CE(),
        lambda n: (randn(n, 4, 5), labels(n)),
    ),
    "gpt": (TinyGPT, flattened, lambda n: (labels(n, n), padded(n, n))),
    "lstm": (
        lambda: Sequences(nn.LSTM(3, 3, batch_first=True), 3), flattened,
        lambda n: (randn(n, n, 3), labels(n, n)),
    ),
    "gru": (
        lambda: Sequences(nn.GRU(3, 3, batch_first=True), 3), nn.MSELoss(),
        lambda n: (randn(n, 2, 3), randn(n, 2, V)),
    ),
    "attention": (
        lambda: Sequences(nn.MultiheadAttention(4, 2, batch_first=True), 4), flattened,
        lambda n: (randn(n, 3, 4), labels(n, 3)),
    ),
    "dictionary": (
        Dictionary, lambda z, y: F.cross_entropy(z["logits"], y["y"]),
        lambda n: {"left": randn(n, 3), "right": randn(n, 4), "y": labels(n)},
    ),
    "bernoulli": (
        mlp, nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
        lambda n: (randn(n, 4), randn(n, V).sign() / 2 + 0.5),
    ),
    "no likelihood": (
        mlp, lambda z, y: F.cross_entropy(z, y) + 0.3 * (z**4).mean(),
        lambda n: (randn(n, 4), labels(n)),
    ),
    "no natural parameters": (
        mlp, lambda z, y: F.cross_entropy(3.0 * torch.tanh(z), y),
        lambda n: (randn(n, 4), labels(n)),
    ),
    "not convex": (
        mlp, lambda z, y: (z * y * z[:, :1].cos()).sum(1).mean(),
        lambda n: (randn(n, 4), randn(n, V)),
    ),
}  # fmt: skip


def build(name, sizes=(4, 3), frozen=False, **options):
    model, loss, batch = MODELS[name]
    torch.manual_seed(0)
    model = model().double().eval()
    if frozen:
        next(model.parameters()).requires_grad_(False)
    torch.manual_seed(1)
    if name == "gpt":
        options |= {"weight": tokens_that_count}
    if name == "class weights, ignored":
        options |= {"weight": lambda x, y: float(torch.where(y == 1, 0.0, WEIGHTS[y]).sum())}
    return Risk(model, loss, [batch(n) for n in sizes], **options)


def flat(tree):
    return torch.cat([part.reshape(-1) for part in tree.values()])


def definition(risk, params=None):
    """The diagonal of the Gauss-Newton matrix: sum_b c_b J'HJ + the weight decay."""
    params = risk.params if params is None else params
    names, leaves = zip(*params.items(), strict=True)
    sizes = [leaf.numel() for leaf in leaves]
    free = [not isinstance(p, nn.Parameter) or p.requires_grad for p in leaves]
    cold = torch.cat([torch.full((n,), float(f), dtype=DOUBLE) for n, f in zip(sizes, free)])  # noqa: B905
    vector = flat({name: leaf.detach() for name, leaf in params.items()})
    total = risk.weight_decay * cold
    for coefficient, batch in risk.batches():

        def outputs(vector, batch=batch):
            parts = zip(names, leaves, vector.split(sizes), strict=True)
            params = {name: part.view_as(leaf) for name, leaf, part in parts}
            z = risk.outputs(params, batch)
            return z["logits"] if isinstance(z, dict) else z

        def loss(z, batch=batch):
            given = {"logits": z} if isinstance(batch.targets, dict) else z
            return risk.loss_of(batch).loss(given)

        z = outputs(vector)
        J = jacobian(outputs, vector).reshape(z.numel(), -1)
        H = hessian(loss, z.detach()).reshape(z.numel(), -1)
        total += coefficient * cold * (J * (H @ J)).sum(0)
    return total


def error(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def way(A):
    found = A._computed_diagonal()
    assert found is not None
    return found
