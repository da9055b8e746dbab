# SPDX-License-Identifier: Apache-2.0
"""Linear operators: the protocol, its algebra, and operators of simple structure."""

from hesse.operators.algebra import LinearOperator
from hesse.operators.block_diagonal import block_diagonal_operator
from hesse.operators.complement import complement_operator
from hesse.operators.dense import aslinearoperator, dense_operator, function_operator
from hesse.operators.diagonal import diagonal_operator, identity_operator
from hesse.operators.kronecker import kronecker_operator
from hesse.operators.low_rank_factors import low_rank_operator

__all__ = [
    "LinearOperator",
    "aslinearoperator",
    "block_diagonal_operator",
    "complement_operator",
    "dense_operator",
    "diagonal_operator",
    "function_operator",
    "identity_operator",
    "kronecker_operator",
    "low_rank_operator",
]
