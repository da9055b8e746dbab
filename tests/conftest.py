# SPDX-License-Identifier: Apache-2.0
"""What all tests share: seeds, and hypothesis without a clock. No default dtype is changed."""

import hypothesis
import pytest
import torch

# Derandomised: a failure in CI is a failure at home. No deadline: the first call compiles and warms.
hypothesis.settings.register_profile("hesse", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("hesse")


@pytest.fixture(autouse=True)
def _seeded():
    """Each test starts from one seed, and must leave torch's global settings as they were."""
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
