# SPDX-License-Identifier: Apache-2.0
"""Every mode, on the database of operations and inputs that torch is tested with.

Products are compared with differences of the gradient, and the gradient with differences of the
value: one sample of each operation and its variants, with `--thorough` four. Of the two modes that
use forward rules a variant takes one, the next variant the other; with `--thorough` both. The
tables of wrong rules, in `hesse.ad`, are compared with what is found, both ways: a rule that is
wrong and not refused fails here, and one that is refused and right is reported.
"""

import warnings
from functools import cache, partial
from itertools import islice

import pytest
import torch
from torch.utils import _pytree as pytree

from hesse.ad import forward_mode
from hesse.ad.forward_mode import WRONG_FORWARD_RULES, WrongRule
from hesse.ad.graph_nodes import graph_nodes
from hesse.curvature import hessian_operator, hvp
from hesse.errors import HesseError

pytestmark = [pytest.mark.slow, pytest.mark.no_cover, pytest.mark.filterwarnings("ignore")]

DOUBLE = torch.float64
SHARDS = 16
MODES = ("reverse-over-reverse", "forward-over-reverse", "reverse-over-forward")

EXCLUDED = {
    **dict.fromkeys(["half", "bfloat16", "chalf"], "rounds to so few digits that differences fail"),
    **dict.fromkeys(["normal", "bernoulli"], "random numbers that are no function of the input"),
    "nn.functional.hinge_embedding_loss": "the target, which varies here, must be 1 or -1",
    "nn.functional.cosine_embedding_loss": "the target, which varies here, must be 1 or -1",
}
NOT_BATCHED = {  # torch reads beyond the memory of arguments whose shapes do not match
    *("lu_unpack", "_segment_reduce", "native_batch_norm", "_native_batch_norm_legit"),
    *("_batch_norm_with_update", "as_strided_scatter", "scatter_reduce"),
}
RULES = {  # of `WRONG_FORWARD_RULES`: the operations of the database that show it
    "BatchNormWithUpdate": ["_batch_norm_with_update"],
    "CholeskyInverse": ["cholesky_inverse"],
    "CholeskySolve": ["cholesky_solve"],
    "LinalgDet": ["linalg.det"],
    "LinalgHouseholderProduct": ["linalg.householder_product"],
    "LinalgSlogdet": ["linalg.slogdet", "logdet"],
    "LinalgSolveEx": ["linalg.solve", "linalg.solve_ex", "linalg.tensorsolve"],
    "NativeBatchNorm": ["native_batch_norm"],
    "NativeBatchNormLegit": ["_native_batch_norm_legit"],
    "NativeLayerNorm": ["native_layer_norm"],
    "ScatterReduce": ["scatter_reduce"],
    "TriangularSolve": ["triangular_solve"],
}


@cache
def database():
    reason = "torch's tests need expecttest, of the extra dev"
    frozen = "__allow_nonbracketed_mutation_flag"  # which this import sets for the whole process
    before = getattr(torch.backends, frozen)
    tests = pytest.importorskip(
        "torch.testing._internal.common_methods_invocations", reason=reason, exc_type=ImportError
    )
    setattr(torch.backends, frozen, before)
    torch.set_num_threads(1)
    return [
        operation
        for operation in tests.op_db
        if operation.supports_dtype(DOUBLE, "cpu") and operation.supports_autograd
    ]


class Case:
    """A scalar function of some of the tensors among the arguments of an operation."""

    def __init__(self, call, arguments, varying):
        self._call, self._varying = call, varying
        self._leaves, self._spec = pytree.tree_flatten(arguments)
        self.x = [self._leaves[i].detach().clone() for i in varying]
        self._differentiable = None
        outputs = self._outputs([part.clone().requires_grad_() for part in self.x])
        self._differentiable = [output.requires_grad for output in outputs]
        outputs = [output.detach() for output in outputs if output.requires_grad]
        assert outputs
        sizes = [float(output.abs().mean()) or 1.0 for output in outputs]
        self._squares = [0.5 / size**2 for size in sizes]
        self._weights = [
            (torch.cos(torch.arange(output.numel(), dtype=DOUBLE)) + 0.3) / size
            for output, size in zip(outputs, sizes, strict=True)
        ]

    def __call__(self, x):
        """A quadratic function of the outputs, of few operations: forward mode has dear ones."""
        total = 0.0
        parts = zip(self._outputs(x), self._squares, self._weights, strict=True)
        for output, square, weight in parts:
            y = output.to(DOUBLE).reshape(-1)
            total = total + (weight.dot(y) + square * y.dot(y))
        return total

    def _outputs(self, x):
        leaves = [
            leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf
            for leaf in self._leaves
        ]
        for place, part in zip(self._varying, x, strict=True):
            leaves[place] = part.clone()  # not a leaf: operations in place may write to it
        torch.default_generator.manual_seed(0)
        result = self._call(*pytree.tree_unflatten(leaves, self._spec))
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if self._differentiable is not None:
            flags = zip(outputs, self._differentiable, strict=True)
            outputs = [output for output, differentiable in flags if differentiable]
        return [
            torch.view_as_real(output.resolve_conj()) if output.is_complex() else output
            for output in outputs
        ]


def cases(operation, samples):
    """The cases of an operation, with what they are called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = operation.sample_inputs("cpu", DOUBLE, requires_grad=True)
        inputs = (s for s in inputs if varying_of(s) and weight_of(s) <= 1000)
        inputs = list(inputs if samples > 1 else islice(inputs, 1))  # hundreds are made of some
    inputs = inputs[:: max(1, len(inputs) // samples)]
    for number, sample in enumerate(inputs):
        for what, arguments, varying in variants(operation, sample):
            name = f"{operation.name} {operation.variant_test_name} sample {number} {what}"
            call = call_of(operation, operation.get_op(), sample)
            try:
                case = Case(call, arguments, varying)
            except Exception:  # the operation does not take these shapes
                continue
            yield name, case
        if number == 0 and operation.inplace_variant is not None:
            call = call_of(operation, operation.inplace_variant, sample)
            try:
                case = Case(call, arguments_of(sample), varying_of(sample))
            except Exception:
                continue
            yield f"{operation.name} in place", case


def call_of(operation, function, sample):
    def call(input, args, kwargs):
        result = operation.gradcheck_wrapper(function, input, *args, **kwargs)
        return sample.output_process_fn_grad(result)

    return call


def arguments_of(sample):
    return sample.input, sample.args, sample.kwargs


def varying_of(sample):
    """The places of the tensors that may vary."""
    return [
        place
        for place, leaf in enumerate(pytree.tree_leaves(arguments_of(sample)))
        if isinstance(leaf, torch.Tensor)
        and (leaf.layout, leaf.dtype) == (torch.strided, DOUBLE)
        and leaf.requires_grad
        and leaf.numel()
    ]


def weight_of(sample):
    leaves = pytree.tree_leaves(arguments_of(sample))
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))


def variants(operation, sample):
    """All tensors vary; one of them; one of them is a batch."""
    arguments, places = arguments_of(sample), varying_of(sample)
    yield "all", arguments, places
    if len(places) > 1:
        yield from ((f"argument {place}", arguments, [place]) for place in places)
    if operation.name in NOT_BATCHED:
        return
    leaves, spec = pytree.tree_flatten(arguments)
    for place in places:
        batched = list(leaves)
        leaf = leaves[place].detach()
        # As many as the matrix has rows: a batch of vectors and a matrix are easily mistaken.
        square = leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1] < 8
        n = leaf.shape[0] if square else 2
        batched[place] = torch.stack([(1 + 0.1 * i) * leaf for i in range(n)]).requires_grad_()
        yield f"batch in {place}", pytree.tree_unflatten(batched, spec), places


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def differences(gradient, x, v):
    """(product, its uncertainty, slope, its uncertainty) by differences of gradient and value."""
    estimates = []
    for h in (1e-4, 5e-5):
        (g1, f1), (g2, f2) = (
            gradient([p + t * q for p, q in zip(x, v, strict=True)]) for t in (h, -h)
        )
        estimates.append(((g1 - g2) / (2 * h), (f1 - f2) / (2 * h)))
    (p1, s1), (p2, s2) = estimates
    return (4 * p2 - p1) / 3, float((p1 - p2).norm()), (4 * s2 - s1) / 3, abs(s1 - s2)


def gradient_by_torch(case, x):
    x = [part.clone().requires_grad_() for part in x]
    value = case(x)
    return flat(torch.autograd.grad(value, x, materialize_grads=True)), float(value.detach())


def gradient_by_hesse(case, x):
    zero = [torch.zeros_like(part) for part in x]
    point = hvp(case, x, zero, "forward-difference", value_and_gradient=True)
    return flat(point.gradient), float(point.value)


def wrong(case, modes):
    """{mode: error} of the products that are wrong, "gradient" among them; None if unknown."""
    v = [torch.randn(part.shape, dtype=DOUBLE) for part in case.x]
    found = _wrong(case, v, modes, gradient_by_torch)
    if found:  # some gradients of torch are wrong too: those that Hesse decomposes
        found = _wrong(case, v, modes, gradient_by_hesse)
    return found


def _wrong(case, v, modes, gradient):
    try:
        g, value = gradient_by_hesse(case, case.x)
        product, uncertainty, slope, doubt = differences(partial(gradient, case), case.x, v)
    except (HesseError, RuntimeError):
        return None
    size = float(product.norm()) + 1e-3 * float(g.norm()) + 1e-8
    if not bool(torch.isfinite(product).all()) or uncertainty > 1e-3 * size:
        return None  # not smooth here
    found = {}
    error = abs(float(g @ flat(v)) - slope)
    if error > 1e-4 * abs(slope) + 10 * doubt + 1e-6 * (1 + abs(value) + float(g.norm())):
        found["gradient"] = error / (abs(slope) + 1e-8)
    for mode in modes:
        try:
            error = float((flat(product_of(case, v, mode)) - product).norm())
        except HesseError:
            continue
        if not error <= 1e-5 * size + 3 * uncertainty:
            found[mode] = error / size
    return found


def product_of(case, v, mode):
    if mode == "traced-split":
        return hessian_operator(case, case.x, mode=mode) @ v
    return hvp(case, case.x, v, mode)


def modes_of(name, number, thorough):
    """The modes to try of an operation's case: all of the first one, of which all tensors vary."""
    if name.endswith("0 all"):
        return *MODES, "traced-split"
    return MODES if thorough else (MODES[0], MODES[1 + number % 2])


@pytest.mark.parametrize("shard", range(SHARDS))
def test_products_are_those_of_differences_or_refused(shard, thorough):
    found, samples = {}, 4 if thorough else 1
    for operation in database()[shard::SHARDS]:
        if operation.name in EXCLUDED:
            continue
        for number, (name, case) in enumerate(cases(operation, samples)):
            modes = modes_of(name, number, thorough)
            if faults := wrong(case, modes):
                found[name] = faults
    assert not found, f"wrong in torch {torch.__version__}, and neither mended nor refused: {found}"


@pytest.mark.parametrize("node", WRONG_FORWARD_RULES)
def test_a_rule_that_is_refused_is_wrong(node, monkeypatch):
    rule = WRONG_FORWARD_RULES[node]
    monkeypatch.setattr(forward_mode, "WRONG_FORWARD_RULES", {})
    for operation in database():
        if operation.name in RULES[node]:
            for _, case in cases(operation, samples=24):
                if shows(case, node, rule) and set(wrong(case, rule.modes) or {}) & set(rule.modes):
                    return
    closed = f"torch {torch.__version__} has mended the rule of {rule.operation} in {rule.modes}"
    if torch.__version__.startswith("2.13"):
        pytest.fail(closed)
    pytest.skip(closed)


def shows(case, node, rule: WrongRule):
    """Whether the rule is used, and would be refused."""
    value = case([part.clone().requires_grad_() for part in case.x])
    nodes = [part for part in graph_nodes(value) if part.name().startswith(f"{node}Backward")]
    return any(rule.is_right is None or not rule.is_right(part) for part in nodes)
