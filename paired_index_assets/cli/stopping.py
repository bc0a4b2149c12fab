"""Ctrl-C and SIGTERM: a command that is stopped says so in one line and exits with 130 or 143, whatever handler was installed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_SECONDS = 0.1
STATUS = 128  # and the signal's number: what a shell says of a process that a signal ended


class Stopped(BaseException):
    """Raised where the signal finds the main thread; no Exception, so that nothing takes it for a mistake of the input."""


class Received:
    """Which of SIGNALS has come. Dagster replaces the handlers while a run is under way, so the kernel's own record is read."""

    def __init__(self, pipe: int | None) -> None:
        self._pipe = pipe
        self._number: int | None = None

    def number(self) -> int | None:
        if self._number is None and self._pipe is not None:
            try:
                came = os.read(self._pipe, 64)
            except BlockingIOError:
                return None
            self._number = next((number for number in came if number in SIGNALS), None)
        return self._number


@contextmanager
def stoppable() -> Iterator[Received]:
    """Raise Stopped at a signal, and remember it, until the end of the block. Only the main thread of a process can."""
    if threading.current_thread() is not threading.main_thread():
        yield Received(None)
        return

    last = [int(signal.SIGINT)]

    def stop(number: int, frame: FrameType | None) -> None:
        last[0] = number
        raise Stopped

    def again(lost: Any) -> None:
        """A signal that finds the thread in a destructor or a weak reference's callback is dropped there, with a traceback: send it again."""
        if issubclass(lost.exc_type, Exception):
            hook(lost)
        else:
            later = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), last[0]))
            later.daemon = True
            later.start()

    hook, sys.unraisablehook = sys.unraisablehook, again
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    old = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield Received(reading)
    finally:
        sys.unraisablehook = hook
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def stop_if_asked() -> None:
    """Raise Stopped if a signal has come that somebody else's handler took: Dagster's drops it where a run is about to end anyway."""
    context = click.get_current_context(silent=True)
    if context is not None and isinstance(context.obj, Received) and context.obj.number() is not None:
        raise Stopped
