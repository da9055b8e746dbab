# SPDX-License-Identifier: Apache-2.0
"""Exact diagonals of matrices J' B J of a risk, from the squares of gradients of single examples.

`diagonal` is the `ComputedDiagonal`; `readers` says for each matrix what z and B are, `vectors`
gives the vectors u with sum u u' = B, `visits` takes a batch at a point, `squares` adds up the
squares of a parameter's gradients by the rule that its last operation has, and `by_example` takes
the parameters that have none.
"""
