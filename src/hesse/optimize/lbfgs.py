# SPDX-License-Identifier: Apache-2.0
"""`LBFGS`: the quasi-Newton method that takes no products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hesse.errors import ArgumentError, check_count
from hesse.optimize.method import MinimizeMethod, Setting
from hesse.optimize.projected_quasi_newton import ProjectedQuasiNewton
from hesse.optimize.proposal import LoopDescent, LoopSearch
from hesse.optimize.quasi_newton import QuasiNewton
from hesse.optimize.wolfe import StrongWolfeSearch


@dataclass(frozen=True, repr=False)
class LBFGS(MinimizeMethod):
    r"""Limited-memory BFGS: curvature from the last steps and the change of the gradient.

    $$ p_k = -M_k g_k, \qquad M_{k+1} = (I - \rho_k s_k y_k^T)\, M_k\, (I - \rho_k y_k s_k^T)
       + \rho_k s_k s_k^T $$

    with s_k = x_{k+1} - x_k, y_k = g_{k+1} - g_k, and a strong Wolfe line search. A preconditioner
    takes the place of the first M. It is the baseline: where gradients are cheap and the problem is
    well conditioned, nothing is faster; where it is not, it takes many more of them.

    Within bounds on x the steps are those of L-BFGS-B: the Cauchy point, and the minimum of the
    model on the variables that are inside there. No preconditioner can be given with bounds.

    Args:
        memory: pairs (s, y) that are kept.

    Cost: one value and one gradient for most steps. No product, but for the certificate at the end.
        Memory: 2 `memory` vectors, as many again with bounds, and about eight more.

    References: Nocedal 1980, doi:10.1090/S0025-5718-1980-0572855-7; Liu & Nocedal 1989,
        doi:10.1007/BF01589116; Byrd, Lu, Nocedal & Zhu 1995, doi:10.1137/0916069 (bounds).

    >>> import hesse, torch
    >>> x = torch.zeros(2, dtype=torch.float64)
    >>> hesse.minimize(lambda x: (x - 1).square().sum(), x, LBFGS()).x
    tensor([1., 1.], dtype=torch.float64)
    """

    name: ClassVar[str] = "lbfgs"
    memory: int = 10

    def _check(self) -> None:
        self._set(memory=check_count("memory", self.memory, 1))

    def compose(self, setting: Setting) -> tuple[LoopDescent, LoopSearch]:
        return quasi_newton_descent(self.memory, setting), StrongWolfeSearch()

    @property
    def takes_bounds(self) -> bool:
        """Yes."""
        return True


def quasi_newton_descent(memory: int, setting: Setting) -> QuasiNewton:
    """That of L-BFGS, or of L-BFGS-B within bounds."""
    if setting.box is None:
        return QuasiNewton(memory, setting.preconditioner)
    if setting.preconditioner is not None:
        raise ArgumentError(
            expected="no preconditioner for L-BFGS within bounds, whose matrix begins with theta I",
            got="preconditioner= and bounds=",
            remedy="Take method='trust-cg', which uses it, or leave one of the two out.",
        )
    return ProjectedQuasiNewton(setting.box, memory)
