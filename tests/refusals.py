# SPDX-License-Identifier: Apache-2.0
"""What every refusal has: the words that are expected, the call, and a remedy."""

import pytest

from hesse.errors import HesseError


def assert_refused(call, says):
    """Assert that a call ends in an error that says so, which call it was, and what to do."""
    with pytest.raises(HesseError, match=says) as caught:
        call()
    assert caught.value.call
    assert caught.value.remedy
