# SPDX-License-Identifier: Apache-2.0
"""`TrustKrylov`: steps that are exact minima within a trust radius, on a Krylov space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hesse.krylov.secular import within_ball
from hesse.optimize.krylov_descent import KrylovDescent
from hesse.optimize.method import IterativeMethod, Setting
from hesse.optimize.proposal import LoopDescent, LoopSearch
from hesse.optimize.trust_radius import TrustRadius


@dataclass(frozen=True, repr=False)
class TrustKrylov(IterativeMethod):
    r"""Steps to the minimum of the quadratic model within a trust radius, by the Lanczos process.

    $$ \min_{s \in \mathcal{K}_j(H, g)} g^T s + \tfrac12 s^T H s, \qquad
       \lVert s \rVert \le \Delta $$

    The matrix T of the process is small: the minimum on the Krylov space is found exactly, on the
    boundary and where H is indefinite too, also in the hard case. Where `TrustCG` stops at the
    boundary, this method goes on along it. After a rejected step the basis serves again, and the
    step for the smaller radius takes no product. With a preconditioner M lengths are those in the
    norm of its inverse.

    Args:
        max_inner_iterations: products of one step at most.

    Cost: a product for each vector of the basis, one value a step, and a gradient where it is
        accepted. Memory: the basis, as many vectors as a step takes products, but at most 1 GB of
        float64 or 30 vectors; half as many vectors of each kind with a preconditioner. Where it has
        no room for another vector and the step is inside, conjugate gradients go on from it. With
        all else that is less than 60 vectors for 10^7 variables.

    References: Gould, Lucidi, Roma & Toint 1999, doi:10.1137/S1052623497322735; Moré & Sorensen
        1983, doi:10.1137/0904038.

    >>> import hesse, torch
    >>> x = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    >>> f = lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4
    >>> round(hesse.minimize(f, x, TrustKrylov()).fun, 8)
    -0.25
    """

    name: ClassVar[str] = "trust-krylov"

    def compose(self, setting: Setting) -> tuple[LoopDescent, LoopSearch]:
        descent = KrylovDescent(setting, within_ball, self.max_inner_iterations, is_bounded=True)
        return descent, TrustRadius(setting.preconditioner)
