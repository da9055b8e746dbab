# SPDX-License-Identifier: Apache-2.0
r"""The damped steps of a large matrix, by as many of its singular values as a radius asks for.

For random $\Omega$ the columns of $A \Omega$ span most of what A does (Halko, Martinsson & Tropp
2011, doi:10.1137/090771806). With an orthonormal basis Q of them and $B = Q^T A$, the small model
$|Q^T f + B p|^2 + \lambda |p|^2$ has a step p that leaves the gradient
$g = A^T(f + A p) + \lambda p$ of the whole one. So p is off by at most $|g| / \lambda$, which takes
two products to know. While that is too much, Q gets more columns, up to 40 % of all. If they do not
do, the whole matrix is decomposed; unless its singular values fell by eight digits and p leaves
next to nothing of f, so that no step could promise more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.optimize.squares.step_family import Step, from_dense, is_by_gram

# A step may be off by this part of its length; the damped model then falls by 99 % of what it can.
_STEP_RTOL = 0.1
# The number of columns at first, and by which factor it grows at least and at most.
_FIRST, _LEAST_GROWTH, _MOST_GROWTH = 64, 1.5, 2.0
# Singular values below this part of the root of lambda change a step by about `_STEP_RTOL`.
_SMALL = 0.02
# Columns for at most this part of the shorter side, which cost a third of the whole matrix at most,
# or half of it where A'A is formed; what a part of `_LITTLE` has cost is next to nothing.
_MOST, _MOST_BY_GRAM, _LITTLE = 0.4, 0.2, 0.1
# With so many columns a step will do that leaves at most this part of |f|^2, if singular values
# fell to this part of the largest: what is beyond is lost to those who form A'A.
_LEFT, _FALLEN = 0.01, 1e-8


class SketchedFamily:
    """p(lambda) for a matrix, up to a tenth of its length; otherwise as a `StepFamily`.

    Args:
        A, f: the matrix (m, n) and the residuals (m,).
        epsilon: singular values below `epsilon` times the largest count as zero.
        dtype: of the steps.

    The random numbers are the same in every call: since steps are checked, they matter for the cost
    alone.

    Cost: 4 m n k operations for k columns, and two products to check a step. Where singular values
    fall slowly, a tenth of the columns are in vain.
    """

    is_complete = True
    products = 0

    def __init__(self, A: Tensor, f: Tensor, epsilon: float, dtype: torch.dtype) -> None:
        self._A, self._f, self._epsilon, self._dtype = A, f.double(), epsilon, dtype
        self._A64 = A.double()
        self._generator = torch.Generator().manual_seed(0)
        self._Q: Tensor | None = self._A64[:, :0]
        self._B = self._A64[:0]
        self._most = int((_MOST_BY_GRAM if is_by_gram(A) else _MOST) * min(A.shape))
        self._right_from = math.inf  # the least damping for which steps are known to be right
        self._grow(_FIRST)

    @property
    def full_length(self) -> float:
        """The length of the Gauss-Newton step; decomposes the whole matrix."""
        self._finish()
        return self._family.full_length

    @property
    def full_decrease(self) -> float:
        """What the Gauss-Newton step would take from the model; decomposes the whole matrix."""
        self._finish()
        return self._family.full_decrease

    def is_within(self, radius: float) -> bool:
        """Whether the Gauss-Newton step is at most so long; of the whole matrix, if it may be.

        One that leaves next to nothing of f may lack long parts along small singular values.
        """
        if self.within(radius).is_limited:
            return False
        self._finish()
        return self._family.is_within(radius)

    def promises(self, decrease: float) -> bool:
        """Whether the Gauss-Newton step takes more than that from the model.

        The columns of Q are combinations of those of A, so that Q' A promises too little.
        """
        while self._right_from > 0.0 and not self._family.promises(decrease):
            self._grow(math.ceil(_MOST_GROWTH * len(self._B)))
        return self._family.promises(decrease)

    def within(self, radius: float) -> Step:
        """The minimiser of the model for |p| <= radius."""
        while not self._is_right(step := self._family.within(radius)):
            columns, is_last = self._enough(step.damping), len(self._B) == self._most
            if columns > self._most and self._fall * self._most <= math.log(_FALLEN):
                if is_last and self._leaves_little(step):
                    break
                columns = self._most + is_last
            self._grow(columns)
        return step

    def correction(self, r: Tensor, damping: float) -> Tensor | None:
        """The step of the same matrix and damping for other residuals, unchecked."""
        return self._family.correction(self._seen(r), damping)

    def _is_right(self, step: Step) -> bool:
        """Whether this is the step of the whole matrix; those for more damping are, too."""
        if step.damping >= self._right_from:
            return True
        if not step.is_limited:
            return False
        p = step.p.double()
        g = self._A64.T @ (self._f + self._A64 @ p) + step.damping * p
        if float(g.norm()) > _STEP_RTOL * step.damping * step.length:
            return False
        self._right_from = step.damping
        return True

    def _leaves_little(self, step: Step) -> bool:
        """Whether no step could promise much more."""
        left = self._f + self._A64 @ step.p.double()
        return float(left @ left) <= _LEFT * float(self._f @ self._f)

    @property
    def _fall(self) -> float:
        """The logarithm of the factor from one singular value to the next, on average."""
        s, k = self._family.s, len(self._B)
        return math.log(float(s[-1] / s[0])) / k if len(s) == k else -math.inf

    def _enough(self, damping: float) -> int:
        """The columns with which a step is right, if the singular values fall on as they do."""
        k, wanted = len(self._B), _SMALL * math.sqrt(damping)
        if self._fall == -math.inf:
            enough = 0.0
        elif wanted <= 0.0 or self._fall == 0.0:
            enough = math.inf
        else:
            enough = math.log(wanted / float(self._family.s[0])) / self._fall
        if k > _LITTLE * min(self._A.shape) and enough > self._most:
            return self._most + 1
        return math.ceil(min(max(enough, _LEAST_GROWTH * k), _MOST_GROWTH * k))

    def _finish(self) -> None:
        """Make all steps right."""
        if self._right_from > 0.0:
            self._grow(self._most + 1)

    def _grow(self, columns: int) -> None:
        """Take so many columns, or the whole matrix if those are many."""
        if columns > self._most:
            self._family = from_dense(self._A, self._f, self._epsilon, self._dtype)
            self._Q, self._right_from = None, 0.0
            return
        shape = self._A.shape[1], columns - len(self._B)
        Omega = torch.randn(shape, dtype=torch.float64, generator=self._generator)
        Y = self._outside(self._A64 @ Omega.to(self._A64.device))
        if len(self._B) and self._is_rounding(Y):
            self._right_from = 0.0
            return
        # Twice: what is left of the columns may be small, and then not orthogonal to Q.
        new = torch.linalg.qr(self._outside(torch.linalg.qr(Y)[0]))[0]
        assert self._Q is not None
        self._Q = torch.cat([self._Q, new], 1)
        self._B = torch.cat([self._B, new.T @ self._A64])
        self._family = from_dense(self._B, self._seen(self._f), self._epsilon, self._dtype)

    def _seen(self, r: Tensor) -> Tensor:
        """Residuals as the matrix that is decomposed has them."""
        return r if self._Q is None else self._Q.T @ r.double()

    def _outside(self, Y: Tensor) -> Tensor:
        """Y without what the basis spans."""
        assert self._Q is not None
        return Y - self._Q @ (self._Q.T @ Y)

    def _is_rounding(self, Y: Tensor) -> bool:
        """Whether the basis spans A: the mean of |(A - Q B) w|^2 is |A - Q B|^2 for random w."""
        left = float(torch.linalg.matrix_norm(Y)) / math.sqrt(Y.shape[1])
        return left <= self._epsilon * float(self._family.s.norm())
