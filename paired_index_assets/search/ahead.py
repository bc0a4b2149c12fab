"""Lists are asked of the disk before they are read: all pieces that a query looks in at once, and only those.

A mapped page that is not in memory is read when it is touched: one after the other, a list being in as many places as there are shards, and
with each what the system reads around it (128 kB as a rule, 8 MB on some machines, where one query's half megabyte became 2.6 GB). Asked for
before (madvise, MADV_WILLNEED), reads overlap, and what is not asked for is not read. In memory already, a piece costs 2 us to ask for, so a
list is asked for once in a while only.
"""

from __future__ import annotations

import mmap
import time
from typing import Any

from numba import types

from paired_index_assets.files.compiling import compiled
from paired_index_assets.search.blocks import int32_at
from paired_index_assets.search.dots import int64_at
from paired_index_assets.search.mapped import ID_BYTES

PAGE = mmap.PAGESIZE
WILLNEED = mmap.MADV_WILLNEED
AGAIN_SECONDS = 300.0  # after which a list may have left memory
IN_FRONT = 64  # lists asked for before the one that is read: of all at once the first would have left memory before their turn

_function: Any = types.ExternalFunction
_advise: Any = _function("madvise", types.int32(types.int64, types.int64, types.int32))


def now() -> int:
    """What `ask` compares: above 0, another one every AGAIN_SECONDS."""
    return 1 + int(time.monotonic() / AGAIN_SECONDS)


@compiled
def ask(plan: Any, number: int, moment: int) -> None:
    """Have the pieces of list `number` read, in whatever order the disk likes, unless that was done at this `moment` (`now`) before.

    Two threads may both ask: it is a hint, and costs a call.
    """
    asked = int32_at(plan.asked)
    if asked[number] == moment:
        return
    asked[number] = moment
    starts, sizes = int64_at(plan.starts), int64_at(plan.sizes)
    for piece in range(number * plan.pieces, (number + 1) * plan.pieces):
        if sizes[piece]:
            first = starts[piece] // PAGE * PAGE
            _advise(first, starts[piece] + sizes[piece] * (plan.code_size + ID_BYTES) - first, WILLNEED)
