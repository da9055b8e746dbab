# SPDX-License-Identifier: Apache-2.0
"""Parameters that several processes share, each with a part of them."""

from hesse.distributed.shard import shard

__all__ = ["shard"]
