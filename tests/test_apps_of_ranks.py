"""Applications whose data, and parameters, several processes share: as in one process."""

from functools import cache

import pytest

from tests import apps_jobs as jobs
from tests.outputs_jobs import SIZES
from tests.ranks_pool import _plain, bits, close

pytestmark = pytest.mark.distributed

# How data and parameters are split: on one rank, evenly, with ranks that have no data.
WHOLE, SHARDED = ["one", "even", "first empty"], ["ragged", "empty"]
PLACES = [(split, False) for split in WHOLE] + [(split, True) for split in SHARDED]


@cache
def _in_one_process(family):
    return _plain(jobs.answered(None, "one", family))


@pytest.mark.parametrize(("split", "is_sharded"), PLACES)
@pytest.mark.parametrize("family", jobs.APPS)
def test_applications_give_what_they_do_in_one_process(pool, family, split, is_sharded):
    found = pool.run(jobs.answered, split, family, is_sharded, size=SIZES[split])
    close(found[0], _in_one_process(family))
    assert len({bits(answers) for answers in found}) == 1
