# SPDX-License-Identifier: Apache-2.0
"""Errors: one family, four parts to a message, and each mistake met with the right one."""

import ast
import inspect
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from hesse import errors, least_squares, minimize
from hesse.apps import saddle
from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    FunctionError,
    HesseError,
    NonFiniteError,
    RandomnessError,
    ShapeError,
    Status,
    StructureError,
)
from hesse.risk.risk import Risk

FAMILY = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, HesseError)
]
X = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
V = {"w": torch.ones(1, 2), "b": torch.ones(1)}


def cubes(p):
    return sum((leaf**3).sum() for leaf in p.values())


def product(f, x, v):
    return hvp(f, x, v)


def operator(f, x, v):
    return hessian_operator(f, x) @ v


WAYS = pytest.mark.parametrize("way", [product, operator])


def assert_raises(error, words, way, f=cubes, x=X, v=V):
    """The error, with its four parts; the call is one that the reader made."""
    with pytest.raises(error, match=words) as caught:
        way(f, x, v)
    raised = caught.value
    assert isinstance(raised, HesseError)
    assert "hesse" in raised.call.lower() or "Hessian(" in raised.call
    for part in (raised.expected, raised.got, raised.remedy):
        assert part
        assert part in str(raised)


# --------------------------------------------------------------------------------------------------
# The family


@pytest.mark.parametrize("kind", FAMILY)
def test_errors_survive_pickling(kind):
    error = kind("f(x)", expected="a", got="b", remedy="Give a.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.call, again.expected, again.got, again.remedy) == ("f(x)", "a", "b", "Give a.")


def test_an_error_is_caught_by_the_built_in_one_as_well():
    assert len(FAMILY) > 10
    builtin = (TypeError, ValueError, RuntimeError, ArithmeticError, ImportError)
    assert all(issubclass(kind, builtin) for kind in FAMILY if kind is not HesseError)
    assert issubclass(errors.FallbackWarning, UserWarning)


@pytest.mark.slow
def test_every_error_says_what_was_expected_what_came_and_what_to_do():
    """And none says the call, which the boundary adds; the command line names itself."""
    kinds, folder = {kind.__name__ for kind in FAMILY}, Path(errors.__file__).parent
    paths = [path for path in folder.rglob("*.py") if path.name != "cli.py"]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    raised = [node for node in calls if getattr(node.func, "id", "") in kinds]
    assert len(raised) > 50
    for node in raised:
        assert not node.args, ast.unparse(node)
        assert {word.arg for word in node.keywords} == {"expected", "got", "remedy"}


def test_warnings_point_to_the_line_of_the_user():
    """Only `hesse.boundary.warn` warns."""
    folder = Path(errors.__file__).parent
    sources = {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}
    assert [name for name, text in sources.items() if "warnings.warn(" in text] == ["boundary.py"]


def test_every_status_is_a_sentence():
    for status in Status:
        assert status.value[0].isupper()
        assert status.value.endswith(".")
    assert len({status.value for status in Status}) == len(Status)


# --------------------------------------------------------------------------------------------------
# Directions


@WAYS
@pytest.mark.parametrize(
    ("v", "error", "words"),
    [
        (torch.ones(4), ShapeError, r"\(4,\)"),
        ({**V, "b": torch.ones(2)}, ShapeError, r"v\['b'\]"),
        ({"w": V["w"]}, StructureError, "missing b"),
        ([V["w"]], StructureError, "a list of 1 entries"),
        (None, StructureError, "NoneType"),
        ({**V, "b": V["b"].double()}, DtypeError, r"v\['b'\]"),
        (torch.ones(3).double(), DtypeError, "float64"),
        (torch.ones(3).long(), DtypeError, "int64"),
        ({**V, "b": V["b"].to("meta")}, DeviceError, r"v\['b'\]"),
        (torch.ones(3, device="meta"), DeviceError, "meta"),
    ],
    ids=lambda value: None,
)
def test_a_direction_unlike_x_is_refused(way, v, error, words):
    assert_raises(error, words, way, v=v)


# --------------------------------------------------------------------------------------------------
# Functions and points


@WAYS
@pytest.mark.parametrize(
    "f",
    [
        lambda p: p["w"] ** 2,
        lambda p: (p["w"] ** 2).sum().view(1),
        lambda p: (p["w"] ** 2).sum().item(),
        lambda p: ((p["w"] ** 2).sum(), p["b"]),
        lambda p: None,
        lambda p: (p["w"] ** 2).sum().long(),
    ],
)
def test_a_function_that_is_no_scalar_is_refused(way, f):
    assert_raises(FunctionError, "scalar", way, f=f)


NET = nn.Linear(2, 1)


@WAYS
@pytest.mark.parametrize(
    "f",
    [
        lambda p: torch.tensor(1.0),
        lambda p: (p["w"].detach() ** 2).sum(),
        lambda p: torch.tensor(p["w"].sum().item()),
        lambda p: (NET(torch.ones(1, 2)) ** 2).sum(),  # the module's own parameters, not p
    ],
    ids=["constant", "detached", "item", "closure"],
)
def test_a_function_that_does_not_depend_on_x_is_refused(way, f):
    assert_raises(FunctionError, "depend on x", way, f=f)


@pytest.mark.parametrize(
    "mode",
    ["reverse-over-reverse", "forward-over-reverse", "reverse-over-forward", "finite-difference"],
)
def test_every_mode_refuses_a_function_of_something_else(mode):
    def f(p):
        return (NET(torch.ones(1, 2)) ** 2).sum()

    with pytest.raises(FunctionError, match="depend on x"):
        hvp(f, X, V, mode)


@WAYS
def test_points_that_cannot_be_differentiated_are_refused(way):
    v = torch.ones(3)
    assert_raises(DtypeError, "int64", way, x=torch.arange(3), v=v)
    assert_raises(DtypeError, r"x\['b'\]", way, x={**X, "b": torch.arange(1)}, v=v)
    assert_raises(DeviceError, r"x\['b'\]", way, x={**X, "b": X["b"].to("meta")}, v=v)
    assert_raises(StructureError, "at least one tensor", way, x={}, v=v)
    assert_raises(StructureError, "str", way, x="weights", v=v)
    frozen = {name: nn.Parameter(leaf, requires_grad=False) for name, leaf in X.items()}
    assert_raises(FunctionError, "frozen", way, x=frozen, v=v)


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(ArgumentError, match=r"'forward-over-reverse'.*\n.*'fast'"):
        hvp(cubes, X, V, mode="fast")


@pytest.mark.parametrize("mode", ["auto", "forward-over-reverse", "finite-difference"])
def test_a_random_function_has_no_operator(mode):
    H = hessian_operator(
        lambda p: cubes({k: nn.functional.dropout(t) for k, t in p.items()}), X, mode=mode
    )
    with pytest.raises(RandomnessError, match=r"model\.eval\(\)"):
        H @ torch.ones(3)


def test_a_seed_inside_f_makes_it_deterministic():
    def f(p):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return (p**2 * torch.rand(2)).sum()

    assert (hessian_operator(f, torch.ones(2)) @ torch.ones(2)).all()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("make", [hessian_operator, ggn_operator])
def test_parameters_that_do_not_fit_the_model_say_which_and_how(make):
    risk = Risk(Tied(), nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 2)))
    weight = risk.params["a.weight"]
    mistakes = [
        ({"a.weight": weight, "b.weight": weight.clone()}, StructureError, "both 'a.weight' and"),
        (
            {**risk.params, "b.bias": torch.ones(1)},
            ShapeError,
            r"params\['b.bias'\] of shape \(2,\)",
        ),
        ({"b.weight": torch.ones(4)}, ShapeError, r"(?s)shape \(2, 2\).*shape \(4,\)"),
    ]
    for params, error, words in mistakes:
        v = torch.ones(sum(leaf.numel() for leaf in params.values()))
        with pytest.raises(error, match=words) as caught:
            make(risk, params) @ v
        assert isinstance(caught.value, HesseError)


@pytest.mark.parametrize("decay", ["a", None, [1.0], -1.0, float("inf"), float("nan")])
def test_a_weight_decay_that_is_no_number_is_refused(decay):
    with pytest.raises(ArgumentError, match="a number weight_decay >= 0"):
        Risk(nn.Linear(2, 1), nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 1)), decay)


# --------------------------------------------------------------------------------------------------
# Numbers


def test_nan_and_inf_name_what_and_where():
    zero = {"w": torch.zeros(1, 2), "b": torch.ones(1)}
    logarithm = hessian_operator(lambda p: p["w"].log().sum() + p["b"].sum(), zero)
    with pytest.raises(NonFiniteError, match="value"):
        _ = logarithm.value
    with pytest.raises(NonFiniteError, match="value"):
        _ = logarithm.value  # not only the first time
    root = hessian_operator(lambda p: p["w"].sqrt().sum() + (p["b"] ** 2).sum(), zero)
    assert float(root.value) == 1.0
    with pytest.raises(NonFiniteError, match=r"gradient with respect to 'w'"):
        _ = root.gradient
    with pytest.raises(NonFiniteError, match=r"gradient with respect to 'w'"):
        _ = root.flat_gradient
    power = hessian_operator(lambda p: (p["w"] ** 1.5).sum() + (p["b"] ** 2).sum(), zero)
    assert torch.isfinite(power.flat_gradient).all()
    with pytest.raises(NonFiniteError, match=r"product with respect to 'w'"):
        power @ torch.ones(3)


@WAYS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_point_or_direction_that_is_not_finite_is_refused(way, bad):
    at = {**X, "b": torch.tensor([bad])}
    assert_raises(NonFiniteError, "'b'", way, x=at)
    assert_raises(NonFiniteError, "'b'", way, v={**V, "b": torch.tensor([bad])})


@pytest.mark.parametrize("x0", [0.0, [0.0], torch.ones(3, dtype=torch.int64)])
@pytest.mark.parametrize("call", [minimize, least_squares, saddle])
def test_errors_name_the_call_of_the_user_and_not_what_it_calls(call, x0):
    with pytest.raises(HesseError) as caught:
        call(lambda x: (x**2).sum(), x0)
    assert f".{call.__name__}(" in caught.value.call
