# SPDX-License-Identifier: Apache-2.0
"""Limited-memory BFGS as a preconditioner, from the steps of an earlier solve.

Steps s with their products y = A s come for free from an earlier run of conjugate gradients: they
are the differences of two iterates and of their residuals (r_k - r_{k+1}), which `Pairs` collects.
They precondition the next system, with the same matrix or a similar one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import ArgumentError, NonFiniteError, OperatorError, check_count
from hesse.krylov.preconditioners.preconditioner import Preconditioner
from hesse.krylov.rounding import unit_roundoff
from hesse.krylov.system import SolverState
from hesse.operators.algebra import LinearOperator
from hesse.result import OneLine
from hesse.vectors.space import Space, Tree


class Pairs(OneLine, list[tuple[Tensor, Tensor]]):
    """Pairs (s, y = A s) of a run of conjugate gradients, whose callback this is.

    At most `most` are held, spread evenly over the run: when there are more, every other one is
    dropped, and only every other later one is added.

    >>> from hesse.krylov import solve
    >>> from hesse.operators import diagonal_operator
    >>> A, pairs = diagonal_operator(torch.tensor([1.0, 4.0, 9.0])), Pairs()
    >>> solution = solve(A, torch.ones(3), "cg", callback=pairs)
    >>> len(pairs), solve(A, torch.ones(3), "cg", quasi_newton(pairs)).converged
    (1, True)
    """

    @public("hesse.krylov.preconditioners.Pairs(most={most})")
    def __init__(self, most: int = 20) -> None:
        super().__init__()
        most = check_count("most", most, 1)
        self.most, self._steps, self._stride = most, 0, 1
        self._x, self._residual = torch.zeros(0), torch.zeros(0)

    def __repr__(self) -> str:
        return f"Pairs({len(self)} of at most {self.most})"

    def __call__(self, state: SolverState) -> None:
        """Take in the step that led to this state."""
        if self._steps and self._steps % self._stride == 0:
            self.append((state.x - self._x, self._residual - state.residual))
        if len(self) > self.most:
            del self[1::2]
            self._stride *= 2
        self._steps += 1
        self._x, self._residual = state.x.clone(), state.residual.clone()


class LimitedMemoryBFGS(LinearOperator):
    """The BFGS approximation of an inverse from the rows of S and Y, latest last.

    A multiple of `first`, or of the identity, is what the pairs update.
    """

    def __init__(
        self,
        space: Space,
        S: Tensor | Sequence[Tensor],
        Y: Tensor | Sequence[Tensor],
        first: LinearOperator | None = None,
    ) -> None:
        super().__init__(space, symmetric=True)
        self.S, self.Y, self.first = S, Y, first
        last = Y[-1] if first is None else first._matvec(Y[-1])
        products = space.inner_pairs(*zip(S, Y, strict=True), (Y[-1], last))
        self.rho = [1.0 / sy for sy in products[:-1]]
        self.gamma = 1.0 / (self.rho[-1] * products[-1])

    def _matvec(self, v: Tensor) -> Tensor:
        """The two-loop recursion."""
        inner = self.domain.inner
        pairs = list(zip(self.S, self.Y, self.rho, strict=True))
        q, alphas = v.clone(), []
        for s, y, rho in reversed(pairs):
            alphas.append(rho * inner(s, q))
            q.sub_(y, alpha=alphas[-1])
        q = self.gamma * (q if self.first is None else self.first._matvec(q))
        for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
            q.add_(s, alpha=alpha - rho * inner(y, q))
        return q


@public("hesse.krylov.preconditioners.quasi_newton(pairs)")
def quasi_newton(pairs: Sequence[tuple[Tree, Tree]], memory: int = 20) -> Preconditioner:
    r"""The limited-memory BFGS approximation of A^-1 from pairs (s, y = A s) of an earlier run.

    $$ M_{k+1} = (I - \rho_k s_k y_k^T)\, M_k\, (I - \rho_k y_k s_k^T) + \rho_k s_k s_k^T, \qquad
       \rho_k = \frac{1}{y_k^T s_k}, \quad M_0 = \frac{s^T y}{y^T y} I $$

    Of more than `memory` pairs those spread evenly over the run are taken. A pair that shows no
    positive curvature, s'y <= eps |s| |y|, is left out: that keeps M positive definite.

    Args:
        pairs: (s, y), oldest first: flat vectors, or trees of one structure; such as `Pairs`.
        memory: the most pairs to use.

    Cost: no products; 2 `memory` vectors, and 8 n `memory` operations a product with M.

    Raises:
        HesseError: no pair of positive curvature; NaN; trees of different structures.

    References: Morales & Nocedal 2000, doi:10.1137/S1052623497327854; Nocedal 1980,
        doi:10.1090/S0025-5718-1980-0572855-7.

    >>> A = torch.diag(torch.tensor([1.0, 4.0]))
    >>> M = quasi_newton([(s, A @ s) for s in torch.eye(2)])
    >>> M @ torch.tensor([1.0, 4.0])
    tensor([1., 1.])
    """
    memory = check_count("memory", memory, 1)
    is_list = isinstance(pairs, Sequence) and len(pairs) > 0
    if not is_list or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in pairs):
        raise ArgumentError(
            expected="at least one pair (s, y), in a list",
            got=f"{len(pairs)} of them" if isinstance(pairs, list) else repr(pairs),
            remedy="Collect steps s and their products y = A s, as of iterates and residuals.",
        )
    space = Space.of(pairs[0][0], what="s")
    S, Y = (
        torch.stack([space.flatten(pair[i], what=what) for pair in pairs])
        for i, what in enumerate("sy")
    )
    kept = [i for i in range(len(S)) if curves_upwards(space, S[i], Y[i])]
    if not kept:
        raise OperatorError(
            expected="a pair with s'y > 0",
            got=f"none among {len(pairs)}",
            remedy="Take steps from a run with a positive definite operator; add damping.",
        )
    chosen = _evenly(kept, memory)
    return Preconditioner(LimitedMemoryBFGS(space, S[chosen], Y[chosen]), products=0)


def curves_upwards(space: Space, s: Tensor, y: Tensor) -> bool:
    """Whether s'y > 0 beyond rounding."""
    if not (space.all_finite(s) and space.all_finite(y)):
        raise NonFiniteError(
            expected="finite pairs",
            got="NaN or Inf in a pair",
            remedy="Leave out the pairs from the end of a run that failed.",
        )
    return space.inner(s, y) > unit_roundoff(space) * space.norm(s) * space.norm(y)


def _evenly(indices: list[int], count: int) -> list[int]:
    """At most `count` of them, the first and the last among them, spread evenly."""
    if len(indices) <= count:
        return indices
    if count == 1:
        return indices[-1:]
    last = len(indices) - 1
    return [indices[round(i * last / (count - 1))] for i in range(count)]
