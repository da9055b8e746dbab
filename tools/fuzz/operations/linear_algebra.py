# SPDX-License-Identifier: Apache-2.0
"""Factorisations and functions of matrices, of arguments that have them."""

from __future__ import annotations

_DEFINITE = "({0} @ {0}.mT + 2 * torch.eye({0}.shape[-2], dtype={0}.dtype))"
_SQUARE = "({0} @ {0}.mT + {0}[..., :1] + 3 * torch.eye({0}.shape[-2], dtype={0}.dtype))"
# Far from multiple eigenvalues.
_SEPARATE = "({0} @ {0}.mT + torch.diag(torch.arange({0}.shape[-2], dtype={0}.dtype) * 3))"
_LOWER = f"torch.linalg.cholesky({_DEFINITE})"

LINEAR_ALGEBRA = (
    *(f"torch.linalg.{name}({_DEFINITE})" for name in ("inv", "det", "slogdet", "cholesky")),
    *(f"torch.linalg.{name}({_SQUARE})" for name in ("inv", "det", "pinv", "matrix_exp")),
    f"torch.linalg.slogdet({_SQUARE})[1]",
    f"torch.logdet({_DEFINITE})",
    f"torch.linalg.inv_ex({_SQUARE}).inverse",
    f"torch.linalg.solve({_SQUARE}, {{0}})",
    f"torch.linalg.solve({_DEFINITE}, {{0}})",
    f"torch.linalg.solve({_SQUARE}, {{0}}.mT, left=False)",
    f"torch.linalg.solve({_DEFINITE}, <s[-2]>)",
    f"torch.cholesky_solve({{0}}, {_LOWER})",
    f"torch.cholesky_inverse({_LOWER})",
    f"torch.linalg.solve_triangular({_LOWER}, {{0}}, upper=False)",
    f"torch.linalg.solve_triangular({_LOWER}.mT, {{0}}, upper=True)",
    f"torch.triangular_solve({{0}}, {_LOWER}, upper=False)[0]",
    f"{_LOWER}.diagonal(dim1=-2, dim2=-1).log().sum(-1)",
    f"torch.linalg.eigvalsh({_SEPARATE})",
    f"torch.linalg.eigh({_SEPARATE})[0]",
    f"torch.linalg.eigh({_SEPARATE})[1] ** 2",
    f"torch.linalg.eigvalsh({_DEFINITE}).sum()",
    f"torch.linalg.eigvals({_SEPARATE}).real.sum()",
    f"torch.linalg.svdvals({_SEPARATE})",
    "torch.linalg.svdvals({0})",
    "torch.linalg.svd({0}, full_matrices=False)[0] ** 2",
    "torch.linalg.matrix_norm({0}, {'nuc'|2})",
    f"torch.linalg.qr({_SQUARE})[{{0|1}}]",
    f"torch.linalg.lu_factor({_SQUARE})[0]",
    f"torch.linalg.lu({_SQUARE})[{{1|2}}]",
    f"torch.linalg.matrix_power({_SQUARE}, {{2|-1|-2}})",
    f"torch.linalg.matrix_exp(0.2 * {_SQUARE})",
    "torch.linalg.pinv({0})",
    "torch.linalg.lstsq({0}.mT @ {0} + torch.eye({0}.shape[-1], dtype={0}.dtype), {0}.mT)[0]",
    f"torch.linalg.tensorinv({_SQUARE}, ind=1)",
    f"torch.linalg.tensorsolve({_SQUARE}, {{0}}[..., 0])",
    f"torch.linalg.cond({_SEPARATE})",
    "torch.linalg.householder_product({0}.mT, 0.5 + {0}[:, 0] ** 2)",
    f"torch.lu_solve({{0}}, *torch.linalg.lu_factor({_SQUARE}))",
    f"torch.distributions.MultivariateNormal(torch.zeros({{0}}.shape[-2], dtype={{0}}.dtype), "
    f"{_DEFINITE}).log_prob(torch.ones({{0}}.shape[-2], dtype={{0}}.dtype))",
)
