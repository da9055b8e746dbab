# SPDX-License-Identifier: Apache-2.0
"""`Lanczos`: the method of `hesse.eigsh` that keeps a Krylov basis and restarts it thickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hesse.checkpoint import Checkpoint
from hesse.errors import check_count, check_flags
from hesse.krylov.basis import Basis
from hesse.krylov.basis_size import check_home, choose_basis_size, usual_size
from hesse.krylov.eigen_problem import EigenMethod, EigenProblem
from hesse.krylov.eigenpairs import Eigenpairs
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.krylov.missed_values import MissedValues
from hesse.krylov.thick_restart import ThickRestart


@dataclass(frozen=True, repr=False)
class Lanczos(EigenMethod):
    r"""The Lanczos method with thick restarts, for eigenpairs at any end of the spectrum.

    $$ A V_m = V_m T_m + \beta_m v_{m+1} e_m^T, \qquad T_m s = \theta s, \quad u = V_m s, \quad
       \lVert A u - \theta u \rVert = \beta_m |s_m| $$

    Args:
        block_size: products taken at once; eigenvalues are found with a multiplicity up to it
            without a search. Default 1, or the columns of v0.
        basis_size: vectors kept, m > k; default max(2k + 10, 30), or what the memory budget allows.
            Up to n = 2048, and without a budget, the default is n: nothing is restarted, and after
            at most n products the answer is exact.
        search_missed: look for eigenvalues that the start could not see, such as those of a
            multiplicity beyond the block, until a wanted one stayed unseen with a probability of
            at most 5%, or 15% after a third of the products that there were: 2 to 25 products more
            (times the block). Where the end of the spectrum is dense it gives up when that would
            take three times as many as there were. Each copy that is found adds a row to the block.
            Switched off, a multiplicity may be silently too small.
        basis_dtype, basis_device: where the basis lives, if not with the vectors: the host, or a
            lower precision, which then limits the accuracy.

    Cost: one product a step, and one at the end that verifies all residuals at once; m + b vectors
        and max(k + 3, 2b) more, where b is the block. If it does not verify them, or the basis is
        in lower precision, or had no room for all that a search found, k products more, and
        max(2k + 4, 2b) vectors.

    Raises:
        HesseError: an option out of range; a device that does not exist.

    References: Wu & Simon 2000, doi:10.1137/S0895479898334605 (thick restart); Ruhe 1979,
        doi:10.1090/S0025-5718-1979-0521282-9 (bands); Parlett 1998, ch. 11 (the bound).

    >>> from hesse.krylov import eigsh
    >>> A = torch.diag(torch.tensor([1.0, 5.0, 5.0, 9.0]))
    >>> eigsh(A, 3, method=Lanczos(block_size=2, search_missed=False)).values
    tensor([5.0000, 5.0000, 9.0000], dtype=torch.float64)
    """

    name: ClassVar[str] = "lanczos"
    block_size: int | None = None
    basis_size: int | None = None
    search_missed: bool = True
    basis_dtype: torch.dtype | None = None
    basis_device: torch.device | str | None = None

    def _check(self) -> None:
        check_flags(search_missed=self.search_missed)
        if self.block_size is not None:
            self._set(block_size=check_count("block_size", self.block_size, 1))
        if self.basis_size is not None:
            self._set(basis_size=check_count("basis_size", self.basis_size, 1))
        check_home(self.basis_dtype, self.basis_device)

    def find_pairs(self, problem: EigenProblem) -> Eigenpairs:
        self._refuse("lobpcg", B=problem.B)
        A, k, run, dtype = problem.A, problem.k, problem.run, self.basis_dtype
        start = problem.start(self.block_size)
        b = start.shape[1]
        m = choose_basis_size(A, k, b, self.basis_size, dtype, problem.memory_budget)
        A.announce(min(m, usual_size(k, b)))
        run.require(b + 1, "a step and the verification at the end take")
        basis = Basis(A, m + b, dtype, self.basis_device)
        # The products that verify, and all but one of a block.
        run.reserved = b if basis.is_exact else b + k
        run.set_default_limit(100 * m + run.reserved)
        selection = problem.selection(k, basis.eps)
        file = self._checkpoint(problem, selection.rtol, m=m, block=b)
        keep = min(k + (m - k) // 2, m - 1) if m < A.domain.n else m
        missed = MissedValues(selection, m, keep, is_given=problem.given.shape[1] > 0)
        search = ThickRestart(
            selection, keep, m == A.domain.n, missed if self.search_missed else None
        )
        process = LanczosProcess(A, m, start, problem.generator, basis)
        del start  # the basis has a copy
        problem.release_given()
        return search.solve(process, run, file, k if problem.memory_budget is None else b)

    def _checkpoint(self, problem: EigenProblem, rtol: float, **sizes: int) -> Checkpoint:
        run_key = {"k": problem.k, "which": problem.which, "rtol": rtol, **sizes}
        run_key["search"] = self.search_missed
        run_key["v0"] = problem.given if problem.given.shape[1] else None
        return Checkpoint(problem.run.checkpoint, problem.A, function="eigsh", **run_key)
