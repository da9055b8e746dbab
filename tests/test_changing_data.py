"""What changes between products is followed or seen: data, what f closes over, the settings."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse import Risk, ggn_operator, hessian_operator
from hesse.engine.data_version import DataVersion
from hesse.errors import DataError, FallbackWarning, RandomnessError

DOUBLE = torch.float64
PREPARED = ["traced-split", "retained-graph"]
MAKERS = [hessian_operator, ggn_operator]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def network(dtype=DOUBLE):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def direction(operator):
    return randn(operator.shape[1], seed=5)


def fresh(make, model, inputs, targets):
    """The product by graphs of an operator that knows nothing of the past."""
    risk = Risk(model, nn.MSELoss(), (inputs.clone(), targets.clone()))
    operator = make(risk, risk.params, mode="retained-graph")
    return operator @ direction(operator)


@pytest.mark.some_cases(5)
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("budget", ["40kB", "80kB", "160kB", "1MB"])
def test_a_shuffling_loader_under_a_budget(make, budget):
    """Residuals that are kept belong to a batch, not to its place in the sweep."""
    model, X, Y = network(), randn(256, 6), randn(256, 3, seed=1)
    loader = DataLoader(
        TensorDataset(X, Y), batch_size=16, shuffle=True, generator=torch.Generator()
    )
    risk = Risk(model, nn.MSELoss(), loader)
    operator, expected = make(risk, risk.params, memory_budget=budget), fresh(make, model, X, Y)
    for _ in range(4):
        torch.testing.assert_close(operator @ direction(operator), expected)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("mode", PREPARED)
def test_a_batch_that_is_overwritten(make, mode):
    model, X, Y = network(), randn(20, 6), randn(20, 3, seed=1)
    risk = Risk(model, nn.MSELoss(), (X, Y))
    operator = make(risk, risk.params, mode=mode)
    v = direction(operator)
    for seed in range(3):
        torch.testing.assert_close(operator @ v, fresh(make, model, X, Y))
        block = operator @ torch.stack([v, v], dim=1)
        torch.testing.assert_close(block[:, 1], fresh(make, model, X, Y))
        X.copy_(randn(20, 6, seed=10 + seed))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [*PREPARED, "compiled-split", "auto"])
def test_what_f_closes_over_is_overwritten(mode):
    A, x, v = randn(50, 6), randn(6, seed=1), randn(6, seed=2)

    def f(y):
        return torch.tanh(A @ y).pow(2).sum()

    H = hessian_operator(f, x, mode=mode)
    for _ in range(3):
        expected = torch.autograd.functional.hessian(f, x) @ v
        torch.testing.assert_close(H @ v, expected)
        A.mul_(1.5)


def test_the_other_parameters_move_on():
    """A graph would not know: it keeps activations only."""
    model, X, Y = network(), randn(20, 6), randn(20, 3, seed=1)
    last = model[2].weight
    x = last.detach().clone()

    def f(W):
        return nn.functional.mse_loss(torch.tanh(model[0](X)) @ W.T + model[2].bias, Y)

    H = hessian_operator(f, x, mode="traced-split")
    v = randn(*x.shape, seed=3)
    for _ in range(3):
        expected = torch.autograd.functional.hvp(f, x, v)[1]
        torch.testing.assert_close(H @ v, expected)
        with torch.no_grad():
            for parameter in model[0].parameters():
                parameter.add_(0.1)


@pytest.mark.parametrize("mode", PREPARED)
def test_values_and_gradients_that_are_given_away_are_the_callers(mode):
    """The gradient of logsumexp is what its Hessian is made of."""
    x, v = randn(6), randn(6, seed=1)
    H = hessian_operator(lambda y: torch.logsumexp(y, 0), x, mode=mode)
    before, value, gradient = H @ v, float(H.value), H.gradient.clone()
    H.gradient.neg_()
    H.flat_gradient.zero_()
    H.value.zero_()
    assert torch.equal(H @ v, before)
    assert float(H.value) == value
    assert torch.equal(H.gradient, gradient)


def test_the_gradient_of_a_risk_with_decay_leaves_products_alone():
    risk = Risk(
        lambda p, x: p * 1.0, lambda z, y: z.exp().sum(), (randn(5), randn(5)), 0.7,
        params=randn(5, seed=1),
    )  # fmt: skip
    G = ggn_operator(risk, risk.params, mode="traced-split")
    v = randn(5, seed=2)
    expected = (risk.params.exp() + 0.7) * v
    for _ in range(2):
        torch.testing.assert_close(G @ v, expected)
        torch.testing.assert_close(G.flat_gradient, risk.params.exp() + 0.7 * risk.params)


def test_the_value_of_several_batches_stays():
    model = network()
    batches = [(randn(5, 6, seed=s), randn(5, 3, seed=9 + s)) for s in range(3)]
    risk = Risk(model, nn.MSELoss(reduction="sum"), batches)
    G = ggn_operator(risk, risk.params, memory_budget="1GB")
    G @ direction(G)
    expected = sum(((model(x) - y) ** 2).sum() for x, y in batches)
    for _ in range(2):
        torch.testing.assert_close(G.value, expected.detach())
        G.flat_gradient  # noqa: B018


def test_autocast_is_part_of_what_is_recorded():
    model, X, Y = network(torch.float32), randn(64, 6).float(), randn(64, 3).float()
    risk = Risk(model, nn.MSELoss(), (X, Y))
    v = direction(hessian_operator(risk, risk.params)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = hessian_operator(risk, risk.params)
        coarse.announce(1000)
        coarse @ v
    H = hessian_operator(risk, risk.params)
    H.announce(1000)
    expected = hessian_operator(risk, risk.params, mode="reverse-over-reverse") @ v
    torch.testing.assert_close(H @ v, expected, rtol=1e-4, atol=1e-6)


def test_a_value_in_full_precision_is_checked_to_it():
    """Products in bfloat16 are coarse, the value is not: a coefficient that creeps is seen."""
    model, X, Y = network(torch.float32), randn(300, 6).float(), randn(300, 3).float()
    scale = [1.0]
    risk = Risk(lambda p, x: torch.func.functional_call(model, p, (x,)),
                lambda z, y: scale[0] * nn.functional.mse_loss(z, y), (X, Y),
                params=dict(model.named_parameters()))  # fmt: skip
    H = hessian_operator(risk, risk.params, mode="traced-split", precision="medium")
    v = direction(H).float()
    for _ in range(3):
        scale[0] *= 1.01
        here = H.at(risk.params)
        expected = hessian_operator(risk, risk.params, mode="reverse-over-reverse") @ v
        assert (here @ v - expected).norm() <= 6e-3 * expected.norm()


class Exponential(torch.autograd.Function):
    """Its backward pass cannot be differentiated: it leaves torch."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.detach().exp()


@pytest.mark.parametrize("place", [0, 1])
def test_a_custom_function_in_any_batch_is_looked_at(place):
    batches = [(randn(4, seed=s), torch.full((4,), float(s))) for s in range(2)]

    def model(p, x):
        return x * p

    def loss(z, y):
        marked = bool((y == place).all())
        return (Exponential.apply(z) if marked else z**2).mean()

    risk = Risk(model, loss, batches, params=torch.tensor(0.3, dtype=DOUBLE))
    with pytest.warns(FallbackWarning):
        product = hessian_operator(risk, risk.params) @ torch.tensor(1.0, dtype=DOUBLE)
    parts = [(x**2 * (0.3 * x).exp() if i == place else 2 * x**2).mean()
             for i, (x, _) in enumerate(batches)]  # fmt: skip
    torch.testing.assert_close(product, sum(parts) / 2, rtol=1e-4, atol=0)


def test_an_f_that_fails_once_does_not_lose_its_modes():
    fails = [False]

    def f(y):
        if fails[0]:
            raise RuntimeError("not now")
        return torch.tanh(y).pow(2).sum()

    x, v = randn(6), randn(6, seed=1)
    H = hessian_operator(f, x)
    fails[0] = True
    with pytest.raises(RuntimeError, match="not now"):
        H @ v
    fails[0] = False
    assert H.mode == "retained-graph"
    torch.testing.assert_close(H @ v, torch.autograd.functional.hessian(f, x) @ v)


def test_a_witness_knows_tensors_by_content():
    x = torch.eye(4)
    witness = DataVersion.of([x, torch.arange(3)])
    assert witness.matches([x.clone(), torch.arange(3)])
    assert not witness.matches([x.flip(0), torch.arange(3)])
    assert not witness.matches([x])
    x.add_(1.0)
    assert not witness.matches([x, torch.arange(3)])
    sparse = torch.eye(3).to_sparse()
    assert DataVersion.of([sparse]).matches([sparse.clone()])


# -- What an operator keeps from its construction --------------------------------------------------


def batches_of_classes():
    X, Y = randn(18, 6), torch.arange(18) % 3
    Y[:6] = torch.tensor([0, -100, 1, -100, 2, 0])
    return [[X[k : k + 6].clone(), Y[k : k + 6].clone()] for k in (0, 6, 12)]


def test_targets_written_before_the_first_product_weigh_as_they_are_then():
    """Two targets that count move to a batch that had none to ignore: another weight for each."""
    model, data = network(), batches_of_classes()
    risk = Risk(model, nn.CrossEntropyLoss(), data)
    operator = hessian_operator(risk, risk.params)
    data[0][1][1:4:2], data[1][1][:2] = torch.tensor([1, 2]), -100
    whole = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    alone = Risk(model, nn.CrossEntropyLoss(), whole)
    expected = hessian_operator(alone, alone.params, mode="retained-graph")
    v = direction(operator)
    torch.testing.assert_close(operator @ v, expected @ v)


def test_targets_written_before_the_first_product_may_not_change_what_counts():
    data = batches_of_classes()
    risk = Risk(network(), nn.CrossEntropyLoss(), data)
    operator = hessian_operator(risk, risk.params)
    data[1][1][0] = -100
    with pytest.raises(DataError, match="total weight"):
        operator @ direction(operator)


def test_a_model_put_in_train_mode_before_the_first_product_is_refused():
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)).double().eval()
    risk = Risk(model, nn.MSELoss(), (randn(20, 6), randn(20, 3, seed=1)))
    operator = hessian_operator(risk, risk.params)
    model.train()
    with pytest.raises(RandomnessError, match="train mode"):
        operator @ direction(operator)


def test_weights_tied_after_the_risk_was_made_are_one_variable():
    """Names under which a module has its tensors are looked up again for a new operator."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    data = randn(20, 6), randn(20, 6, seed=1)
    risk = Risk(model, nn.MSELoss(), data)
    model[2].weight = model[0].weight
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    params["0.weight"] *= 1.5
    tied = hessian_operator(risk, params)

    def f(p):
        both = p | {"2.weight": p["0.weight"]}
        return nn.functional.mse_loss(
            torch.func.functional_call(model, both, data[0], tie_weights=False), data[1]
        )

    plain = hessian_operator(f, params)
    torch.testing.assert_close(tied @ direction(tied), plain @ direction(tied))


def test_programs_follow_an_autocast_entered_after_construction():
    model, data = network(torch.float32), (randn(20, 6).float(), randn(20, 3, seed=1).float())
    risk = Risk(model, nn.MSELoss(), [data, data])
    before = hessian_operator(risk, risk.params, mode="traced-split")
    v = direction(before).float()
    with torch.autocast("cpu", torch.bfloat16):
        within = hessian_operator(risk, risk.params, mode="traced-split")
        assert torch.equal(before @ v, within @ v)
    exact = hessian_operator(risk, risk.params, mode="traced-split") @ v
    expected = hessian_operator(risk, risk.params, mode="reverse-over-reverse") @ v
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-6)
    assert not torch.equal(within @ v, exact)
