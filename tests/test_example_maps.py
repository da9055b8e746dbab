# SPDX-License-Identifier: Apache-2.0
"""The examples that rows belong to, read off rows that carry a number for each example."""

import pytest
import torch

from hesse.curvature.kronecker.examples import read_map, scales


@pytest.mark.parametrize("inner", [1, 3, 6])
def test_rows_of_examples_in_regular_order_are_found(inner):
    examples, R = 40, 240
    owner = (torch.arange(R) // inner) % examples
    rows = torch.randn(R, 1, 5)
    rows[::7] = 0.0  # says nothing
    probed = [s[owner][:, None, None].float() * rows for s in scales(examples)]
    found = read_map(rows, probed, examples)
    assert found is not None
    assert found.inner == inner
    sums = torch.zeros(examples, 1, 5).index_add_(0, owner, rows)
    torch.testing.assert_close(found.sums(rows), sums)
    assert torch.equal(found.owners(R, rows.device), owner)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_were_sent_anywhere_are_found(dtype):
    examples, R = 3000, 4000
    owner = torch.randint(0, examples, (R,))
    rows = torch.randn(R, 2, 3)
    rows[:50] = 0.0
    probed = [(s[owner][:, None, None] * rows).to(dtype) for s in scales(examples)]
    found = read_map(rows.to(dtype), probed, examples)
    assert found is not None
    torch.testing.assert_close(
        found.sums(rows), torch.zeros(examples, 2, 3).index_add_(0, owner, rows)
    )
    assert torch.equal(found.owners(R, rows.device)[50:], owner[50:])


def test_a_row_of_two_examples_is_noticed():
    examples = 8
    one, two = torch.randn(2, examples, 1, 4)
    neighbour = torch.roll(torch.arange(examples), 1)
    probed = [
        s[:, None, None].float() * one + s[neighbour][:, None, None].float() * two
        for s in scales(examples)
    ]
    assert read_map(one + two, probed, examples) is None
