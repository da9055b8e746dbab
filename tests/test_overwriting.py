"""Writes to places that repeat: the entry that stays is the one that counts."""

import pytest
import torch

from hesse import hessian_operator, hvp

DOUBLE = torch.float64
INDEX = torch.tensor([2, 0, 2, 1, 2])
X = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=DOUBLE)
V = torch.tensor([1.0, -1.0, 2.0, 3.0, 0.5], dtype=DOUBLE)


def zeros():
    return torch.zeros(4, dtype=DOUBLE)


def set_item(x):
    z = zeros()
    z[INDEX] = x
    return z


def set_item_by_a_list(x):
    z = zeros()
    z[INDEX.tolist()] = x
    return z


def set_rows(x):
    z = torch.zeros(2, 4, dtype=DOUBLE)
    z[:, INDEX] = x
    return z[1]


def set_after_use(x):
    z = torch.cat([x[:3], x[:1]])
    z[INDEX] = x
    return z * torch.tensor([1, 1, 1, 0], dtype=DOUBLE)


WRITES = {
    "setitem": set_item,
    "setitem, list": set_item_by_a_list,
    "setitem, rows": set_rows,
    "setitem, over x": set_after_use,
    "index_put": lambda x: zeros().index_put((INDEX,), x),
    "index_put, named": lambda x: torch.index_put(zeros(), (INDEX,), values=x, accumulate=False),
    "index_put_": lambda x: zeros().index_put_((INDEX,), x),
    "scatter": lambda x: zeros().scatter(0, INDEX, x),
    "scatter, named": lambda x: torch.scatter(zeros(), 0, INDEX, src=x),
    "index_put, all named": lambda x: torch.index_put(zeros(), indices=[INDEX], values=x),
    "scatter, all named": lambda x: torch.scatter(zeros(), dim=0, index=INDEX, src=x),
    "scatter_": lambda x: zeros().scatter_(0, INDEX, x),
    "index_copy": lambda x: zeros().index_copy(0, INDEX, x),
    "index_copy_": lambda x: zeros().index_copy_(0, INDEX, x),
    "put": lambda x: torch.put(zeros(), INDEX, x),
    "put_": lambda x: zeros().put_(INDEX, x),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_the_entry_that_stays_counts(write):
    """sum of cubes / 6 of the entries that are there: their second derivatives are themselves."""
    stays = torch.isin(X, write(X)).to(DOUBLE)
    assert stays.sum() == 3

    def f(x):
        return (write(x) ** 3).sum() / 6

    H = hessian_operator(f, X)
    torch.testing.assert_close(H.gradient, stays * X**2 / 2)
    for _ in range(4):
        torch.testing.assert_close(H @ V, stays * X * V)
    torch.testing.assert_close(hvp(f, X, V), stays * X * V)
    torch.testing.assert_close(hvp(f, X, V, mode="reverse-over-forward"), stays * X * V)


def test_one_entry_for_places_that_repeat():
    def f(x):
        z = zeros()
        z[INDEX] = x[0] ** 2  # three places
        return z.sum() + x.sum() * 0

    torch.testing.assert_close(hvp(f, X, V), torch.tensor([6.0, 0, 0, 0, 0], dtype=DOUBLE))


@pytest.mark.parametrize("mode", ["auto", "traced-split"])
def test_places_that_do_not_repeat_are_left_to_torch(mode):
    index = torch.tensor([2, 0, 3])

    def f(x):
        z = torch.zeros(4, dtype=DOUBLE)
        z[index] = x[:3]
        z[torch.tensor([True, False, False, True])] = x[3:] ** 2
        z[:2] = x[1:3] * x[0]
        return (z**3).sum()

    oracle = torch.autograd.functional.hessian(f, X)
    torch.testing.assert_close(hessian_operator(f, X, mode=mode).to_dense(), oracle)


def test_entries_that_are_added_are_all_there():
    def f(x):
        return (zeros().index_put((INDEX,), x, accumulate=True) ** 3).sum()

    oracle = torch.autograd.functional.hessian(f, X)
    torch.testing.assert_close(hessian_operator(f, X).to_dense(), oracle)


def test_an_index_that_vmap_hides_is_left_to_torch():
    def f(x):
        def write(i, entry):
            return torch.zeros(4, dtype=DOUBLE).index_put((i[None],), entry[None])

        return (torch.vmap(write)(INDEX, x) ** 3).sum() / 6

    torch.testing.assert_close(hvp(f, X, V), X * V)
