# SPDX-License-Identifier: Apache-2.0
"""What becomes of a case: right, refused, a fault, or unclear because the oracles do not say."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cache
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import hesse
from tools.fuzz import prelude
from tools.fuzz.cases import Case
from tools.fuzz.checks import CHECKS, DIFFERENCES, Facts, mode_of, shift_of
from tools.fuzz.contexts import CONTEXTS
from tools.fuzz.oracle import DOUBLE, Expected, Oracle, Unclear, flat

FAULTS = ("wrong", "raised", "damaged", "crashed", "hung")
"""Verdicts that are faults of Hesse."""


class Row(NamedTuple):
    """The verdict on one check."""

    check: str
    verdict: str
    detail: str = ""


@cache
def _compiled(code: str) -> CodeType:
    return compile(code, "<case>", "exec")


def namespace(case: Case, dtype: str) -> dict[str, Any]:
    """What the source of a case defines, in a dtype."""
    names = dict(vars(prelude))
    exec(_compiled(case.source(f"torch.{dtype}")), names)
    return names


def judge(case: Case) -> Iterator[Row]:
    """The verdict on each check of a case."""
    torch.manual_seed(case.seed)
    facts = facts_of(case)
    for check in case.checks:
        try:
            yield _verdict(case, check, facts)
        except Unclear as unclear:
            yield Row(check, "unclear", str(unclear)[:200])


_SCALES = {"tiny": 1e-6, "huge": 1e6, "zero": 0.0}


def facts_of(case: Case) -> Facts:
    """The oracle of a case in float64, directions and another point."""
    exact = namespace(case, "float64")
    oracle = Oracle(exact["f"], exact["x"], exact["outputs"], exact.get("output_loss"))
    generator = torch.Generator().manual_seed(case.seed)
    v, w, y = (torch.randn(oracle.n, generator=generator).to(DOUBLE) for _ in range(3))
    if case.direction == "unit":
        v = torch.zeros_like(v)
        v[case.seed % oracle.n] = 1.0
    v = (v * _SCALES.get(case.direction, 1.0)).float().double()
    y = (oracle.x + 0.1 * y).float().double()
    of_inputs, inputs = None, exact.get("inputs")
    is_real = inputs is not None and pytree.tree_leaves(inputs)[0].is_floating_point()
    if is_real and getattr(case, "form", "") != "dicts":  # which are inputs with their labels
        of_inputs = Oracle(exact["of_inputs"], inputs)
    return Facts(oracle, v, w, y, getattr(case, "weight_decay", 0.0), of_inputs)


def _verdict(case: Case, name: str, facts: Facts) -> Row:
    try:
        expected = CHECKS[name].expected(facts)
    except Unclear:
        raise
    except Exception as error:  # f fails by itself
        raise Unclear(f"f fails: {type(error).__name__}: {error}") from error
    if not bool(torch.isfinite(expected.value).all()):
        raise Unclear("not finite")
    names = namespace(case, case.dtype)
    before = [leaf.detach().clone() for leaf in pytree.tree_leaves(names["x"])]
    if case.dtype == "float32":
        _check_single(names)
    names |= arguments(case, names, facts)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            _run(case, name, names, facts)
        except hesse.HesseError as error:
            return Row(name, "refused", f"{type(error).__name__}: {error.got[:300]}")
        except Exception as error:
            if _fails_by_itself(case, names):
                raise Unclear("f has no gradient in this context, without Hesse") from error
            return Row(name, "raised", f"{type(error).__name__}: {str(error)[:300]}")
    if name != "risk" and _is_damaged(before, pytree.tree_leaves(names["x"])):
        return Row(name, "damaged", "the point of the caller was changed")
    used = str([w.message for w in warned if issubclass(w.category, hesse.errors.FallbackWarning)])
    with torch.inference_mode(False):
        return _compared(case, name, names, expected, facts, used)


def _check_single(names: dict[str, Any]) -> None:
    try:
        names["f"](names["x"])
    except Exception as error:
        raise Unclear(f"f fails in float32: {error}") from error


def arguments(case: Case, names: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """What the code of a check reads, beside the source of the case."""
    dtype = getattr(torch, case.dtype)
    return {
        "hesse": hesse,
        "n": facts.oracle.n,
        "like_x": facts.oracle.tree,
        **{key: getattr(facts, key).to(dtype) for key in ("v", "w", "y")},
    }


def code_of(case: Case, name: str, facts: Facts | None = None) -> str:
    """The code of a check in the context of a case; its result is `got`."""
    code = "target, jacobian_of = f, outputs\n" + CHECKS[name].code
    if case.kind == "model":
        risk = f"target = jacobian_of = hesse.Risk(model, loss, data, {case.weight_decay})\n"
        code = risk + CHECKS[name].code
    if "shift" in code:
        shift = shift_of(facts_of(case) if facts is None else facts)
        code = code.replace("shift", repr(shift))
    return f"with {CONTEXTS[case.context]}:\n    " + code.replace("\n", "\n    ") + "\n"


def _run(case: Case, name: str, names: dict[str, Any], facts: Facts) -> None:
    exec(_compiled(code_of(case, name, facts)), names)


def expectation(case: Case, name: str) -> list[float] | None:
    """What is expected of a check; None where the oracles do not say."""
    try:
        return CHECKS[name].expected(facts_of(case)).value.reshape(-1).tolist()
    except Unclear:
        return None


_GRADIENT = """\
with {context}, torch.inference_mode(False), torch.enable_grad():
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    torch.autograd.grad(f(torch.utils._pytree.tree_unflatten(leaves, spec)), leaves,
        allow_unused=True, create_graph=True)
"""


def _fails_by_itself(case: Case, names: dict[str, Any]) -> bool:
    """Whether torch has no gradient of f in the context of a case."""
    leaves, spec = pytree.tree_flatten(names["x"])
    code = _GRADIENT.format(context=CONTEXTS[case.context])
    try:
        exec(_compiled(code), {**names, "leaves": leaves, "spec": spec})
    except Exception:
        return True
    return False


def _is_damaged(before: list[Tensor], after: list[Tensor]) -> bool:
    return any(
        not torch.equal(one, two.detach()) or two.grad is not None
        for one, two in zip(before, after, strict=True)
    )


def _compared(
    case: Case, name: str, names: dict[str, Any], expected: Expected, facts: Facts, used: str
) -> Row:
    got = flat(names["got"])
    if got.shape != expected.value.reshape(-1).shape:
        return Row(name, "wrong", f"shape {tuple(got.shape)} for {tuple(expected.value.shape)}")
    rtol = _rtol(case, name, expected, used)
    tolerance = rtol * expected.size + 10 * expected.error
    if case.dtype == "float32":
        tolerance += 30 * _noise(case, facts)
    if "slack" in names:
        error = flat(torch.as_tensor(names["slack"].standard_error))
        tolerance += 8 * float(error.norm()) + 1e-9
    error = float((got - expected.value.reshape(-1)).norm())
    if error <= tolerance:
        fell = "differences" if "using 'finite-difference'" in used else ""
        return Row(name, "right", fell)
    if mode_of(name) in DIFFERENCES and _is_coarse(case, facts, expected):
        raise Unclear("f is not smooth over the step of a difference")
    shown = f"error {error:.2g}, tolerance {tolerance:.2g}, size {expected.size:.2g}"
    return Row(name, "wrong", f"{shown}{', by differences' * expected.by_differences} {used[:300]}")


def _is_coarse(case: Case, facts: Facts, expected: Expected) -> bool:
    """Whether a difference over a step such as float32 needs is far from the derivative."""
    if ".float()" in case.source():
        return True
    if case.dtype == "float64":
        return False
    oracle, length = facts.oracle, float(facts.v.norm()) + 1e-30
    v, exact = facts.v / length, expected.value.reshape(-1) / length
    for h in (1e-2, 5e-2):
        product = (oracle.gradient(oracle.x + h * v) - oracle.gradient(oracle.x - h * v)) / (2 * h)
        if product.shape != exact.shape:
            return True
        if float((product - exact).norm()) > 0.05 * float(exact.norm()):
            return True
    return False


def _rtol(case: Case, name: str, expected: Expected, used: str) -> float:
    single = case.dtype == "float32" or ".float()" in case.source()
    by_differences = mode_of(name) in DIFFERENCES or "using 'finite-difference'" in used
    if by_differences:
        rough = mode_of(name) == "forward-difference"
        return (0.3 if rough else 0.1) if single else (1e-2 if rough else 1e-3)
    if name in ("eigsh", "solve", "logdet", "trace", "norm", "diagonal"):
        return 1e-2 if single else 1e-5
    return 2e-3 if single else 1e-7


def _noise(case: Case, facts: Facts) -> float:
    """The error of torch's own product and value in float32."""
    names = namespace(case, "float32")
    single = Oracle(names["f"], names["x"], names["outputs"])
    single.x = single.x.float()
    try:
        product = single.double_backward(facts.v.float()).double()
    except RuntimeError:
        return 0.0
    noise = float((product - facts.oracle.product(facts.v).value).norm())
    noise += abs(single.value(single.x) - facts.oracle.value(facts.oracle.x))
    return noise if noise == noise else 0.0


def normalised(text: str) -> str:
    """A message without its numbers, to count messages by their kind."""
    return re.sub(r"\d[\d.e+-]*", "#", text)[:160]
