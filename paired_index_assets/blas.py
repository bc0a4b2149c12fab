"""numpy's BLAS on one thread, for work that is shared out among threads already.

Left to itself OpenBLAS starts a thread a core in each of ours, and they wait for each other: with as many of them work takes twice as long.
It also sums in another order with other threads, so that results would depend on the machine's cores.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_users = 0
_limit: Any = None


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Until the last of the blocks that overlap ends, whichever thread each is in; then as it was before the first."""
    global _users, _limit
    with _lock:
        if not _users:
            _limit = ThreadpoolController().select(internal_api="openblas").limit(limits=1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _limit.restore_original_limits()
