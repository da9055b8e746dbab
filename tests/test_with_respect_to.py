# SPDX-License-Identifier: Apache-2.0
"""Hessians with respect to the inputs of a model, or to some leaves of x."""

import pytest
import torch
from torch import nn

from hesse import Risk, eigsh, hessian_operator
from hesse.errors import ArgumentError, DtypeError
from hesse.testing import check_operator

DOUBLE = torch.float64


def setting(*sizes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    batches = [(torch.randn(n, 4).double(), torch.randint(0, 3, (n,))) for n in sizes]
    return model, batches, Risk(model, nn.CrossEntropyLoss(), batches, weight_decay=0.1)


@pytest.mark.some_cases(5)
@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("sizes", [(7,), (8, 8, 3)])
@pytest.mark.parametrize("mode", ["auto", "traced-split", "retained-graph", "forward-over-reverse"])
def test_the_inputs_of_a_model(sizes, mode):
    model, batches, risk = setting(*sizes)
    inputs, targets = (torch.cat(part) for part in zip(*batches, strict=True))

    def f(x):
        return nn.functional.cross_entropy(model(x), targets)

    n = inputs.numel()
    expected = torch.autograd.functional.hessian(f, inputs).reshape(n, n)
    H = hessian_operator(risk, risk.params, mode=mode, with_respect_to="inputs")
    v = H.domain.gaussian()
    for _ in range(3):
        torch.testing.assert_close(H @ v, expected @ v)
    torch.testing.assert_close(H.to_dense(), expected)
    gradient = torch.autograd.functional.jacobian(f, inputs)
    torch.testing.assert_close(H.flat_gradient, gradient.reshape(-1))
    torch.testing.assert_close(H.value, f(inputs).detach())
    assert H.domain.shapes == (inputs.shape,)
    check_operator(H)


def test_other_parameters_take_the_programs_that_are_there():
    _, _, risk = setting(8, 8)
    H = hessian_operator(risk, risk.params, mode="traced-split", with_respect_to="inputs")
    v = H.domain.gaussian()
    H @ v
    near = {name: 1.1 * leaf for name, leaf in risk.params.items()}
    other = hessian_operator(risk, near, mode="traced-split", with_respect_to="inputs")
    expected = hessian_operator(risk, near, mode="retained-graph", with_respect_to="inputs")
    torch.testing.assert_close(other @ v, expected @ v)


def test_its_largest_eigenvalue_is_that_of_the_worst_example():
    _, _, risk = setting(5, 2)
    H = hessian_operator(risk, risk.params, with_respect_to="inputs")
    values = torch.linalg.eigvalsh(H.to_dense())
    torch.testing.assert_close(eigsh(H, 2).values, values[-2:], rtol=1e-8, atol=1e-10)


def f(x):
    return (x["a"] ** 2 * x["b"].sum()).sum() + (x["b"] ** 3).sum()


def test_some_leaves_of_x():
    x = {"a": torch.randn(3, dtype=DOUBLE), "b": torch.randn(2, dtype=DOUBLE)}
    H = hessian_operator(f, x)
    for name in x:
        part = hessian_operator(f, x, with_respect_to=name)
        torch.testing.assert_close(part.to_dense(), H.block(name).to_dense())
        assert part.shape == (len(x[name]),) * 2
    for wrong in ("c", "", 1, [], ["a", "c"]):
        with pytest.raises(ArgumentError, match="the name of a leaf"):
            hessian_operator(f, x, with_respect_to=wrong)


def test_a_list_of_names_and_patterns():
    _, _, risk = setting(8, 3)
    H = hessian_operator(risk, risk.params)
    place = {name: k for k, name in enumerate(H.domain.names)}
    for names in (["2.weight", "0.bias"], ("*.bias",), ["2", "0.*"], {"0.weight", "2.bias"}):
        part, block = hessian_operator(risk, risk.params, with_respect_to=names), H.block(names)
        chosen = block.domain.names
        assert part.domain.names == chosen == tuple(sorted(chosen, key=place.__getitem__))
        sizes = [parameter.numel() for parameter in risk.params.values()]
        which = [name in chosen for name in H.domain.names]
        rows = torch.repeat_interleave(torch.tensor(which), torch.tensor(sizes))
        expected = H.to_dense()[rows][:, rows]
        torch.testing.assert_close(part.to_dense(), expected)
        torch.testing.assert_close(block.to_dense(), expected)
        assert (block @ part.domain.unflatten(torch.ones(block.shape[0]).double())).keys() == set(
            chosen
        )


def test_a_layer_of_a_model():
    _, _, risk = setting(8, 3)
    layer = hessian_operator(risk, risk.params, with_respect_to="2")
    assert layer.domain.names == ("2.weight", "2.bias")
    expected = hessian_operator(risk, risk.params).block("2").to_dense()
    for mode in ("auto", "traced-split"):
        part = hessian_operator(risk, risk.params, with_respect_to="2", mode=mode)
        torch.testing.assert_close(part.to_dense(), expected)


def test_inputs_that_are_integers_are_refused():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    risk = Risk(model, nn.CrossEntropyLoss(), (torch.randint(0, 5, (4, 2)), torch.arange(4) % 2))
    with pytest.raises(DtypeError, match="inputs of a real floating-point dtype"):
        hessian_operator(risk, risk.params, with_respect_to="inputs")


@pytest.mark.parametrize("name", ["inputs", "0.weight"])
@pytest.mark.parametrize(("budget", "kept"), [("none", 0), ("1 GB", 3)])
def test_the_memory_budget_holds(name, budget, kept):
    _, _, risk = setting(8, 8, 3)
    H, free = (
        hessian_operator(risk, risk.params, with_respect_to=name, memory_budget=b)
        for b in (budget, None)
    )
    v = H.domain.gaussian()
    for _ in range(3):
        torch.testing.assert_close(H @ v, free @ v)
    assert H.plan.held.kept == kept


def test_a_budget_that_is_too_small_is_refused():
    _, _, risk = setting(8, 8)
    with pytest.raises(ArgumentError, match="a memory budget of at least"):
        hessian_operator(risk, risk.params, with_respect_to="inputs", memory_budget=100)
