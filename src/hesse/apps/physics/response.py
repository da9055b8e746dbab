# SPDX-License-Identifier: Apache-2.0
"""`response`: how a minimum moves when a parameter of the energy changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.apps.physics.rigid import Rigid, rigid_motions, root_masses_of
from hesse.boundary import public, warn
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.hvp import hvp
from hesse.errors import OperatorError, ShapeError
from hesse.krylov.solve import solve
from hesse.operators.algebra import LinearOperator
from hesse.progress import FilePath
from hesse.result import Result
from hesse.vectors.space import Space, Tree

_MOST = 1000  # parameters, each of which is a system
_FAR = 0.01


@dataclass(frozen=True, repr=False)
class Response(Result):
    """Derivatives of a minimum x(q), and of the energy there."""

    derivative: Any
    """dx/dq, a tree like x, each leaf with the dimensions of q behind its own."""
    slope: Tensor
    """dE/dq = f_q, of the shape of q: what moves x does not count (Hellmann-Feynman)."""
    second: Tensor
    """d2E/dq2 = f_qq - f_qx H^+ f_xq, (p, p) of the entries of q, such as a polarisability."""
    residual_norm: float
    """The largest |f_xq + H dx/dq| of all parameters."""
    products: int
    """Hessian products, those for f_xq included."""


@public("hesse.apps.response(f, x, q)")
def response(
    f: Callable[[Any, Any], Tensor],
    x: Tree,
    q: Tensor,
    *,
    rigid: Rigid = "auto",
    rtol: float = 1e-8,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Response:
    r"""How the minimum x(q) of an energy f(x, q) moves with q, and how its energy changes.

    $$ \frac{dx}{dq} = -H^+ f_{xq}, \qquad \frac{d^2 E}{dq^2} = f_{qq} - f_{qx} H^+ f_{xq} $$

    Args:
        f: energy of x and of the parameters q: a field, a strength, a charge.
        x: a minimum of f(., q), as in `modes`; a warning says if it is no stationary point.
        q: a tensor of some parameters.
        rigid: as in `modes`. Rigid motions that cost no energy are left out: dx/dq has none.
        rtol, progress, checkpoint: of the systems, as in `solve`.

    Returns:
        Response(derivative, slope, second, residual_norm, products).

    Cost: a product for each parameter, one more, and a block of systems by conjugate gradients. To
        differentiate a loss of x(q) use `argmin`: one system, however many parameters.

    Raises:
        HesseError: x is no minimum; q is no tensor of at most 1,000 entries; a force f_xq that
            moves or turns the molecule as a whole, although that costs no energy.

    >>> energy = lambda x, q: x**4 / 4 - q * x                    # x = q^(1/3)
    >>> move = response(energy, torch.tensor(2.0), torch.tensor(8.0))
    >>> move.derivative * 12, move.slope
    (tensor(1.), tensor(-2.))
    """
    if not (isinstance(q, Tensor) and 0 < q.numel() <= _MOST):
        raise ShapeError(
            expected=f"q to be a tensor of 1 to {_MOST} parameters",
            got=f"shape {tuple(q.shape)}" if isinstance(q, Tensor) else type(q).__name__,
            remedy="Take hesse.apps.argmin(f, x) for a tree of parameters, or for many.",
        )
    space, parameters = Space.of(x), Space.of(q, what="q")
    flat = space.flatten(x, what="x").detach()
    fixed = q.detach()

    def at_q(x: Tree) -> Tensor:
        return f(x, fixed)

    def joint(point: dict[str, Any]) -> Tensor:
        return f(point["x"], point["q"])

    def value(v: Tensor) -> Tensor:
        with torch.no_grad():
            return at_q(space.unflatten(v))

    motions = rigid_motions(value, flat, space, rigid)
    Z = motions.coordinates(space, flat, root_masses_of(None, space))
    point = {"x": space.unflatten(flat), "q": fixed}
    zero, slope, forces, curvatures = space.unflatten(space.zeros()), None, [], []
    gradient = space.zeros()
    for unit in torch.eye(parameters.n, dtype=parameters.dtype, device=parameters.device):
        direction = {"x": zero, "q": parameters.unflatten(unit)}
        got = hvp(joint, point, direction, value_and_gradient=True)
        slope, gradient = got.gradient["q"], space.flatten(got.gradient["x"])
        forces.append(space.flatten(got.product["x"]))
        curvatures.append(parameters.flatten(got.product["q"]))
    F, C = torch.stack(forces, dim=1), torch.stack(curvatures, dim=1)
    H = hessian_operator(at_q, x)
    reduced = Z._rmatmat(F)
    _check_forces(F, reduced, space)
    solution = solve(H.project(Z), -reduced, rtol=rtol, progress=progress, checkpoint=checkpoint)
    if not solution.converged or solution.direction is not None:
        raise OperatorError(
            expected="x to be a minimum of f(., q), with a positive definite Hessian",
            got=f"|f_xq + H dx| = {solution.residual_norm:.2g}. {solution.status.value}",
            remedy="Minimise first, or say with rigid= which motions cost no energy.",
        )
    _check_stationary(H, gradient, flat)
    X = Z._matmat(solution.x)
    leaves = [
        leaf.movedim(0, -1).reshape((*shape, *q.shape))
        for leaf, shape in zip(_leaves_of_columns(space, X), space.shapes, strict=True)
    ]
    return Response(
        derivative=space.build(leaves),
        slope=torch.zeros_like(q) if slope is None else slope,
        second=C + F.T.to(C) @ X.to(C),
        residual_norm=solution.residual_norm,
        products=solution.products + parameters.n + 1,
    )


def _check_stationary(H: LinearOperator, gradient: Tensor, x: Tensor) -> None:
    """Warn if the gradient vanishes at a point farther than a hundredth of the size of x."""
    slope, bend = H.domain.inner_pairs((gradient, gradient), (gradient, H._matvec(gradient)))
    size = H.domain.norm(x - x.mean()) or H.domain.norm(x)
    if bend > 0.0 and slope**1.5 / bend > _FAR * size:
        warn(
            f"x is not a stationary point: |grad f| = {slope**0.5:.2g}. The derivatives are those "
            "of a minimum; minimise first, with a small atol."
        )


def _leaves_of_columns(space: Space, X: Tensor) -> list[Tensor]:
    """Each leaf of all columns, stacked along a first dimension."""
    rows = [space.leaves(space.unflatten(column)) for column in X.T.contiguous()]
    return [torch.stack(leaves) for leaves in zip(*rows, strict=True)]


def _check_forces(F: Tensor, reduced: Tensor, space: Space) -> None:
    """Raise where a force has a component along motions that nothing holds back."""
    whole, kept = F.norm(dim=0), reduced.norm(dim=0)
    lost = (whole**2 - kept**2).clamp(min=0.0).sqrt()
    if bool((lost > torch.finfo(F.dtype).eps ** 0.5 * 10 * whole).any()):
        raise OperatorError(
            expected="forces f_xq without a net push or turn",
            got=f"a fraction of {float((lost / whole).max()):.2g} of one along free motions, which "
            "cost no energy",
            remedy="Hold an atom, or subtract the net force.",
        )
