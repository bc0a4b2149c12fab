"""Work that must not wait forever for somebody who does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from paired_index_assets.errors import SourceUnavailable

Result = TypeVar("Result")


def within(seconds: float, what: object, work: Callable[[], Result]) -> Result:
    """The result of `work`, or what it raises. Raises SourceUnavailable naming `what` if that takes longer; `work` is then left to itself."""
    done: list[Result] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            raised.append(error)

    worker = threading.Thread(target=run, daemon=True)  # a daemon, so that the process can end without it
    worker.start()
    worker.join(seconds)
    if raised:
        raise raised[0]
    if not done:
        raise SourceUnavailable(f"{what}: no answer within {seconds:.0f} s; check its address, and that nothing between drops the packets")
    return done[0]
