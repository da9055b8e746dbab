# SPDX-License-Identifier: Apache-2.0
"""The components and the probability of an eigenvector that no start has seen."""

import math

import pytest
import torch

from hesse.krylov import Lanczos, eigsh
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.krylov.unseen import Unseen
from hesse.operators.dense import aslinearoperator
from tests.linear_systems import seeded

N, VALUE = 200, 1.25


def process(b, matrix):
    """After 20 products from a start that is orthogonal to the last unit vector, and exploring."""
    v0 = torch.randn(N, b, generator=seeded(), dtype=torch.float64)
    v0[-1] = 0.0
    lanczos = LanczosProcess(aslinearoperator(matrix), 80, v0, seeded(1))
    lanczos.extend(20)
    lanczos.explore(torch.tensor([VALUE], dtype=torch.float64))
    return lanczos


@pytest.fixture
def matrix():
    """Eigenvalues in [0, 1], and VALUE for the last unit vector."""
    basis = torch.linalg.qr(torch.randn(N - 1, N - 1, generator=seeded(), dtype=torch.float64)).Q
    values = torch.rand(N - 1, generator=seeded(), dtype=torch.float64)
    return torch.block_diag(basis @ torch.diag(values) @ basis.T, torch.tensor([[VALUE]]).double())


@pytest.mark.parametrize("b", [1, 2, 3])
def test_components_are_those_of_the_eigenvector(matrix, b):
    """Its part in the random directions determines all others, also after a restart and swaps."""
    lanczos = process(b, matrix)
    old = lanczos.rows - b
    part = lanczos.used[old:, -1].clone()
    for restart in (False, True):
        if restart:
            values, coordinates, _ = lanczos.ritz()
            lanczos.restart(coordinates[:, -10:], values[-10:])
        for _ in range(4):
            lanczos.bring_forward([lanczos.waiting - 1])
            lanczos.step()
        torch.testing.assert_close(
            lanczos.unseen.components[0] @ part, lanczos.used[:, -1], rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("b", [1, 2])
def test_the_bound_is_the_probability_of_so_small_a_part(b):
    """Of Gaussian parts x with |Q x| <= 1, beside a million draws."""
    unseen = Unseen()
    unseen.begin(torch.tensor([3.0], dtype=torch.float64), old=2, b=b, n=50)
    for j in range(2, 2 + 3 * b):
        column = torch.zeros(j + b, dtype=torch.float64)
        column[j:] = torch.rand(b, generator=seeded(j), dtype=torch.float64)
        unseen.extend(j, column, 0.9)
    x = torch.randn(10**6, b, generator=seeded(), dtype=torch.float64) / math.sqrt(50)
    share = float(((x @ unseen.components[0].T).norm(dim=1) <= 1).double().mean())
    assert 0.98 * share <= unseen.probability <= 1.1 * share  # the density is not constant


def test_a_product_that_stays_in_the_basis_rules_an_eigenvector_out():
    """From a random direction in an eigenspace of another eigenvalue none of this one is hidden."""
    lanczos = process(1, torch.diag(torch.cat([torch.ones(2), torch.zeros(N - 2)]).double()))
    assert lanczos.unseen.probability == 1.0
    lanczos.extend(lanczos.rows)
    assert lanczos.unseen.probability < 1e-50


def test_the_expected_products_are_those_of_the_rate_so_far(matrix):
    lanczos = process(1, matrix)
    taken, start = 0, lanczos.unseen.log_start
    while lanczos.unseen.probability > 1e-3:
        lanczos.bring_forward([lanczos.waiting - 1])
        lanczos.step(1)
        taken += 1
    rate = (start - lanczos.unseen.log_bound) / taken
    expected = lanczos.unseen.expected_products(taken, 1e-6)
    assert expected == pytest.approx((start + math.log(1e6)) / rate)
    assert Unseen().expected_products(3, 0.5) == math.inf


def test_results_say_how_likely_it_is_that_a_value_is_missing(matrix):
    def unseen(**options):
        pairs = eigsh(
            matrix, 2, max_products=options.pop("max_products", None), generator=seeded(),
            method=Lanczos(**options),
        )  # fmt: skip
        return pairs["unseen"]

    assert 0.0 < unseen(basis_size=40) <= 0.05
    assert unseen(basis_size=40, max_products=10) == 1.0
    assert unseen(basis_size=40, search_missed=False) is None
    assert eigsh(matrix[:5, :5], 2).unseen == 0.0  # a basis of the whole space
