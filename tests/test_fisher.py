# SPDX-License-Identifier: Apache-2.0
"""Fisher matrices and gradient covariances against their dense definitions, on many models."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from hesse import Risk, fisher_operator, ggn_operator, gradient_covariance_operator
from hesse.errors import DataError, FunctionError
from hesse.testing import check_operator

DOUBLE = torch.float64
MODES = ["auto", "traced-split", "retained-graph"]
V = 6  # classes and tokens


class TinyGPT(nn.Module):
    """A transformer of one block whose embedding is its head too; logits (batch, sequence, V)."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, 4)
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, tokens):
        x = self.embedding(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x @ self.embedding.weight.T


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 3, batch_first=True), nn.Linear(3, V)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, V)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, V)

    def forward(self, left, right):
        return {"logits": self.b(torch.tanh(self.a(left) + right))}


class OwnLoss(nn.Module):
    """A model that computes its own loss, as those of transformers do."""

    def __init__(self):
        super().__init__()
        self.gpt = TinyGPT()

    def forward(self, input_ids, labels):
        logits = self.gpt(input_ids)
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1))
        return {"loss": loss, "logits": logits}


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, V))


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(16, V),
    )  # fmt: skip


def randn(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def labels(*shape):
    return torch.randint(0, V, shape)


def padded(*shape):
    y = labels(*shape)
    y.view(shape[0], -1)[0, -1] = -100
    return y


def flattened(z, y):
    return F.cross_entropy(z.reshape(-1, V), y.reshape(-1))


def transposed(z, y):
    loss = 0.5 * F.cross_entropy(z.transpose(1, 2), y)
    loss += 0.5 * flattened(z, y)
    return loss


def dictionary(z, y):
    return F.cross_entropy(z["logits"], y["y"])


def tokens_that_count(inputs, targets):
    return float((targets != -100).sum())


# name -> (model, loss, batch of n examples, options of Risk)
MODELS = {
    "mlp": (mlp, nn.CrossEntropyLoss(), lambda n: (randn(n, 4), labels(n)), {}),
    "conv": (conv, nn.CrossEntropyLoss(), lambda n: (randn(n, 2, 4, 4), labels(n)), {}),
    "class weights": (
        mlp,
        nn.CrossEntropyLoss(
            torch.linspace(0.5, 2, V, dtype=DOUBLE), ignore_index=1, label_smoothing=0.1
        ),
        lambda n: (randn(n, 4), labels(n)),
        {},
    ),
    "gpt": (
        TinyGPT,
        flattened,
        lambda n: (labels(n, 3), padded(n, 3)),
        {"weight": tokens_that_count},
    ),
    "lstm": (Recurrent, transposed, lambda n: (randn(n, 3, 3), labels(n, 3)), {}),
    "attention": (
        Attention,
        nn.MSELoss(reduction="sum"),
        lambda n: (randn(n, 3, 4), randn(n, 3, V)),
        {},
    ),
    "dictionary": (
        Dictionary,
        dictionary,
        lambda n: {"left": randn(n, 3), "right": randn(n, 4), "y": labels(n)},
        {},
    ),
    "bernoulli": (
        mlp,
        nn.BCEWithLogitsLoss(pos_weight=torch.linspace(1, 3, V, dtype=DOUBLE)),
        lambda n: (randn(n, 4), labels(n, V) % 2 + 0.0 * randn(n, V)),
        {},
    ),
    "poisson": (
        mlp,
        nn.PoissonNLLLoss(),
        lambda n: (randn(n, 4), labels(n, V).double()),
        {},
    ),
}


class CallLeft(nn.Module):
    """Takes the whole batch, of which it reads two entries."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, left, right, y):
        return self.inner(left, right)


def build(name, sizes=(5, 3), frozen=False, **changes):
    model, loss, batch, options = MODELS[name]
    torch.manual_seed(0)
    model = model().double()
    model = CallLeft(model) if name == "dictionary" else model
    if frozen:
        next(model.parameters()).requires_grad_(False)
    torch.manual_seed(1)
    return Risk(model, loss, [batch(n) for n in sizes], **(options | changes))


def flat(tree):
    return torch.cat([part.reshape(-1) for part in tree.values()])


def unflat(vector, params):
    sizes = [part.numel() for part in params.values()]
    parts = zip(params, vector.split(sizes), strict=True)
    return {name: part.view_as(params[name]) for name, part in parts}


def logits(risk, batch):
    """The logits of a batch as a function of the flat parameters, by functional_call."""

    def outputs(vector):
        z = risk.outputs(unflat(vector, risk.params), batch)
        return z["logits"] if isinstance(z, dict) else z

    return outputs


def dense_ggn(risk):
    """sum_b c_b J' H J, with J and H by torch.autograd.functional."""
    x = flat(risk.params)
    total = torch.zeros(len(x), len(x), dtype=DOUBLE)
    for coefficient, batch in risk.batches():
        z = logits(risk, batch)(x).detach()
        J = torch.autograd.functional.jacobian(logits(risk, batch), x).reshape(-1, len(x))

        def loss(vector, batch=batch, z=z):
            out = vector.view_as(z)
            wrapped = {"logits": out} if isinstance(batch.targets, dict) else out
            return risk.loss(wrapped, batch.targets)

        H = torch.autograd.functional.hessian(loss, z.reshape(-1))
        total += coefficient * J.T @ H @ J
    return total


def close(operator, exact):
    """Within 1e-8 of the dense matrix."""
    ours = operator.to_dense()
    assert (ours - exact).norm() <= 1e-8 * exact.norm()


# -- The exact Fisher matrix -----------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_exact_is_the_gauss_newton_matrix_of_natural_parameters(name):
    risk = build(name)
    exact = dense_ggn(risk)
    close(fisher_operator(risk, risk.params, mode="traced-split"), exact)
    close(fisher_operator(risk, risk.params, mode="retained-graph"), exact)


@pytest.mark.parametrize("mode", MODES)
def test_weight_decay_and_frozen_parameters(mode):
    risk = build("mlp", frozen=True, weight_decay=0.3)
    n = len(flat(risk.params))
    exact = dense_ggn(risk) + 0.3 * torch.eye(n, dtype=DOUBLE)
    fisher = fisher_operator(risk, risk.params, mode=mode)
    for _ in range(3):
        close(fisher, exact)
    v = fisher.domain.gaussian()
    assert float(fisher.curvature(v)) == pytest.approx(float(v @ exact @ v))
    check_operator(fisher)
    leaf = flat(risk.params).requires_grad_()
    value = risk(unflat(leaf, risk.params))
    torch.testing.assert_close(fisher.value, value.detach())
    torch.testing.assert_close(fisher.flat_gradient, torch.autograd.grad(value, leaf)[0])


def test_a_model_that_computes_its_own_loss():
    torch.manual_seed(0)
    model, ids = OwnLoss().double(), labels(4, 3)
    own = Risk(model, lambda out, batch: out["loss"], [{"input_ids": ids, "labels": ids}])

    def outside(z, y):
        return F.cross_entropy(z[:, :-1].reshape(-1, V), y[:, 1:].reshape(-1))

    plain = Risk(model.gpt, outside, (ids, ids))
    exact = dense_ggn(plain)
    close(fisher_operator(own, own.params), exact)
    close(ggn_operator(own, own.params), exact)
    close(ggn_operator(own, own.params, mode="traced-split"), exact)
    both = [fisher_operator(risk, risk.params, "empirical") for risk in (own, plain)]
    close(both[0], both[1].to_dense())
    torch.testing.assert_close(
        ggn_operator(own, own.params).flat_gradient, ggn_operator(plain, plain.params).flat_gradient
    )


def test_a_model_whose_own_loss_has_a_penalty():
    class Penalised(OwnLoss):
        def forward(self, input_ids, labels):
            out = super().forward(input_ids, labels)
            return {**out, "loss": out["loss"] + 0.1 * out["logits"].square().mean()}

    ids = labels(4, 3)
    risk = Risk(
        Penalised().double(), lambda out, batch: out["loss"], [{"input_ids": ids, "labels": ids}]
    )
    for make in (fisher_operator, ggn_operator):
        with pytest.raises(FunctionError, match="another way than through its cross_entropy"):
            make(risk, risk.params) @ risk.params


@pytest.mark.parametrize(
    ("loss", "targets", "link"),
    [
        (nn.NLLLoss(), labels(8), lambda z: z.log_softmax(1)),
        (nn.BCELoss(), labels(8, V) % 2 + 0.0 * randn(8, V), torch.sigmoid),
        (nn.PoissonNLLLoss(log_input=False), labels(8, V).double(), torch.exp),
    ],
)
def test_parameters_that_are_not_natural(loss, targets, link):
    """The same distribution as with its natural parameters, so the same Fisher matrix."""
    natural = {
        nn.NLLLoss: nn.CrossEntropyLoss(),
        nn.BCELoss: nn.BCEWithLogitsLoss(),
        nn.PoissonNLLLoss: nn.PoissonNLLLoss(),
    }[type(loss)]
    torch.manual_seed(0)
    model, x = mlp().double(), randn(8, 4)
    linked = Risk(lambda p, x: link(torch.func.functional_call(model, p, (x,))), loss, (x, targets),
                  params={k: p.detach() for k, p in model.named_parameters()})  # fmt: skip
    plain = Risk(model, natural, (x, targets))
    exact, eps = dense_ggn(plain), 1e-7  # of PoissonNLLLoss
    ours = fisher_operator(linked, linked.params).to_dense()
    assert (ours - exact).norm() <= eps * exact.norm()


def test_a_gaussian_with_its_variance():
    torch.manual_seed(0)
    net, x = nn.Linear(3, 2).double(), randn(7, 3)

    def loss(z, y):
        return nn.GaussianNLLLoss()(z[:, :1], y, z[:, 1:].exp())

    risk = Risk(net, loss, (x, randn(7, 1)))
    exact = torch.zeros(8, 8, dtype=DOUBLE)
    for row in x:  # F in (mean, log variance) is diag(1 / v, 1 / 2)
        J = torch.autograd.functional.jacobian(
            lambda w, row=row: w[:6].view(2, 3) @ row + w[6:], flat(risk.params)
        )
        v = (J @ flat(risk.params))[1].exp()
        exact += J.T @ torch.diag(torch.stack([1 / v, torch.tensor(0.5).double()])) @ J / 7
    close(fisher_operator(risk, risk.params), exact)


# -- Empirical and sampled -------------------------------------------------------------------------


def per_row_gradients(risk, batch):
    """The gradient of each term of an unreduced cross-entropy, in the flat parameters."""
    x = flat(risk.params)

    def rows(vector):
        z = logits(risk, batch)(vector).reshape(-1, V)
        y = batch.targets["y"] if isinstance(batch.targets, dict) else batch.targets
        return F.cross_entropy(z, y.reshape(-1), reduction="none")

    return torch.autograd.functional.jacobian(rows, x)


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt", "dictionary"])
@pytest.mark.parametrize("per", ["row", "example"])
def test_empirical_is_the_second_moment_of_stacked_gradients(name, per):
    risk = build(name)
    exact = 0.0
    for coefficient, batch in risk.batches():
        g = per_row_gradients(risk, batch)
        counted = int(g.any(1).sum())
        if per == "example":
            inputs = batch.inputs["left"] if isinstance(batch.inputs, dict) else batch.inputs
            g = g.view(len(inputs), -1, g.shape[1]).sum(1)
        exact = exact + coefficient * g.T @ g / counted
    for mode in ("traced-split", "retained-graph"):
        close(fisher_operator(risk, risk.params, "empirical", per=per, mode=mode), exact)


def test_empirical_with_class_weights():
    """g_i g_i' of the likelihood with smoothing, times the weight of its Hessian."""
    w = torch.linspace(0.5, 2, V, dtype=DOUBLE)
    risk = build("mlp", sizes=(7,), weight_decay=0.0)
    batch = risk.data.first
    loss = nn.CrossEntropyLoss(w, label_smoothing=0.1)
    risk = Risk(risk.model, loss, (batch.inputs, batch.targets))
    x, y = flat(risk.params), batch.targets
    exact = torch.zeros(len(x), len(x), dtype=DOUBLE)
    for i in range(7):

        def row(vector, i=i):
            z = logits(risk, batch)(vector)[i : i + 1]
            loss = F.cross_entropy(z, y[i : i + 1], w, label_smoothing=0.1, reduction="sum")
            return loss / (0.9 * w[y[i]] + 0.1 / V * w.sum())

        g = torch.autograd.functional.jacobian(row, x)
        exact += (0.9 * w[y[i]] + 0.1 / V * w.sum()) / w[y].sum() * g.outer(g)
    close(fisher_operator(risk, risk.params, "empirical"), exact)


@pytest.mark.parametrize("name", ["mlp", "gpt", "attention", "bernoulli", "poisson"])
@pytest.mark.parametrize("per", ["row", "example"])
def test_samples_converge_to_the_exact_matrix(name, per):
    risk = build(name)
    exact = dense_ggn(risk)
    errors = []
    for samples in (1, 400):
        fisher = fisher_operator(
            risk, risk.params, "sampled", samples=samples, per=per,
            generator=torch.Generator().manual_seed(3),
        )  # fmt: skip
        errors.append(float((fisher.to_dense() - exact).norm() / exact.norm()))
    assert errors[1] <= 0.2
    assert errors[1] <= 0.25 * errors[0]  # a twentieth, if all goes well


@pytest.mark.parametrize("mode", MODES)
def test_draws_are_made_once(mode):
    risk = build("mlp")

    def make(seed):
        generator = torch.Generator().manual_seed(seed)
        return fisher_operator(
            risk, risk.params, "sampled", samples=2, generator=generator, mode=mode
        )

    one, same, other = make(0), make(0), make(1)
    dense = one.to_dense()
    close(same, dense)
    close(one, dense)
    assert (other.to_dense() - dense).norm() > 0.1 * dense.norm()
    moved = {name: part + 0.01 for name, part in risk.params.items()}
    near, again = one.at(moved), same.at(moved)
    close(near, again.to_dense())
    # The same numbers at a point so near give nearly the same draws.
    assert (near.to_dense() - dense).norm() < 0.3 * dense.norm()
    check_operator(one)


def test_a_shuffling_loader_has_no_draws_of_its_own():
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(randn(24, 4), labels(24)), 4, shuffle=True)
    risk = Risk(mlp().double(), nn.CrossEntropyLoss(), loader)
    exact, empirical = (fisher_operator(risk, risk.params, kind) for kind in ("exact", "empirical"))
    v = exact.domain.gaussian()
    for A in (exact, empirical):
        first = A @ v
        torch.testing.assert_close(A @ v, first)
    sampled = fisher_operator(risk, risk.params, "sampled")

    def products():
        return [sampled @ v for _ in range(3)]

    with pytest.raises(DataError, match="has its own draws"):
        products()


# -- Gradient covariance ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("centered", [False, True])
def test_covariance_is_that_of_example_gradients(name, centered):
    risk = build(name, weight_decay=0.2)
    gradients, weights = [], []
    for _, batch in risk.batches():
        inputs, targets = batch.inputs, batch.targets
        number = len(inputs["left"] if isinstance(inputs, dict) else inputs)
        for i in range(number):
            if isinstance(inputs, dict):
                one = {key: part[i : i + 1] for key, part in inputs.items()}
                single = (one, one)
            else:
                single = inputs[i : i + 1], targets[i : i + 1]
            x = flat(risk.params).requires_grad_()
            single_risk = risk.unchecked_on([single[0] if isinstance(inputs, dict) else single])
            parts = next(iter(single_risk.batches()))[1]
            loss = risk.loss_of_batch(unflat(x, risk.params), parts)
            gradients.append(torch.autograd.grad(loss, x)[0])
            weights.append(parts.weight if risk.averages else 1.0)
    g, w = torch.stack(gradients), torch.tensor(weights, dtype=DOUBLE)
    w = w / w.sum()
    exact = g.T @ (w[:, None] * g)
    if centered:
        exact -= (w @ g).outer(w @ g)
    M = gradient_covariance_operator(risk, risk.params, centered=centered)
    close(M, exact)
    close(M, exact)
    assert torch.linalg.eigvalsh(M.to_dense()).min() >= -1e-10 * exact.norm()


def test_covariance_and_empirical_fisher_agree_for_unweighted_cross_entropy():
    risk = build("mlp")
    close(
        fisher_operator(risk, risk.params, "empirical"),
        gradient_covariance_operator(risk, risk.params).to_dense(),
    )


# -- Cost ---------------------------------------------------------------------


def flops(product):
    with FlopCounterMode(display=False) as counter:
        product()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt", "lstm"])
def test_a_product_costs_what_a_gauss_newton_product_does(name):
    risk = build(name, sizes=(16,))
    G = ggn_operator(risk, risk.params, mode="traced-split")
    v = G.domain.gaussian()
    operators = [
        fisher_operator(risk, risk.params, kind, mode="traced-split", per=per)
        for kind, per in (
            ("exact", "row"), ("sampled", "row"), ("empirical", "row"), ("empirical", "example"),
        )
    ]  # fmt: skip
    operators.append(gradient_covariance_operator(risk, risk.params, mode="traced-split"))
    for A in (G, *operators):
        A @ v
    expected = flops(lambda: G @ v)
    for A in operators:
        assert 0 < flops(lambda A=A: A @ v) <= 1.05 * expected
