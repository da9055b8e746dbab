# SPDX-License-Identifier: Apache-2.0
"""Kronecker-factored curvature: factors read off the traced program of J'u.

| file | answers |
|---|---|
| `hesse/tracing/last_operations.py` | from which operation does each gradient come? |
| `layout.py` | which parameters form a block, and where does it lie? |
| `programs.py` | what computes the operands of these operations? |
| `roots.py` | from which vectors u at the outputs? |
| `rows.py`, `examples.py` | which rows have the operands, and of which examples? |
| `row_products.py`, `moments.py`, `estimate.py` | what is summed over rows, vectors and batches? |
| `blocks.py`, `operator.py`, `saved.py`, `coverage.py` | the operator, its file, its table |
"""
