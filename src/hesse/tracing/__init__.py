# SPDX-License-Identifier: Apache-2.0
"""A compiler for products with derivatives: trace a function, rewrite the graph, run it.

    functionalize.trace -> Graph -> passes -> partition -> Programs -> backends

`tracer` watches torch's dispatch and notes every operation as a `Node`; `functionalize` makes that
graph free of writes. The passes rewrite it. `partition` splits it into a primal program, which runs
once at a point, and tangent programs, which run once for every product; `memory` orders their nodes
and recomputes values so that they take less memory. `backends` have faster kernels and a compiler.
Nothing here knows derivatives: `hesse.ad` defines products, and `hesse.engine` has them traced.
"""
