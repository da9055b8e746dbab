# SPDX-License-Identifier: Apache-2.0
"""Whether a test is traced for the coverage report, which takes half as long again or thrice."""

import sys

import pytest


def is_traced():
    return type(sys.gettrace()).__module__.startswith("coverage")


@pytest.fixture
def was_traced():
    return is_traced()


@pytest.mark.no_cover
def test_it_is_not_where_it_is_not_to_be(was_traced):
    assert not was_traced
    assert not is_traced()


def test_it_is_where_there_is_a_report(pytestconfig, was_traced):
    assert is_traced() == was_traced == pytestconfig.pluginmanager.hasplugin("_cov")
