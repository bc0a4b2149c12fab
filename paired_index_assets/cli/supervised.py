"""Dagster's web server and daemon as a child of a command: what of their output a person reads, and their end within seconds."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from paired_index_assets.errors import PairedIndexError

ORDERLY_SECONDS = 4.0  # for the ends of web server and daemon; a run that is cut off is found at the next start, and retried
LOOK_SECONDS = 0.1
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4} - (\S+) - ([A-Z]+) - (.*)")
_QUIET = ("DEBUG", "INFO")
_EXPECTED = ("No cursor for event type",)  # of the first start of a daemon: there is nothing that it could have missed
_OF_A_RUN = "dagster"  # the logger's name; what else it says of a run is in the run's log, in the UI
_STACK = ("Stack Trace:", "The above exception was caused by the following exception:")


def readable(lines: Iterable[str]) -> Iterator[str]:
    """Of the lines of Dagster's processes, those for the person at the terminal: warnings, errors and what causes them.

    Left out are the events of each run, which the UI shows, and the stack of a run that failed: the cause stays.
    """
    shown, of_a_run = True, False
    for line in (_COLOUR.sub("", line) for line in lines):
        if record := _RECORD.match(line):
            name, level, message = record.groups()
            shown = level not in _QUIET and not message.startswith(_EXPECTED)
            of_a_run = name == _OF_A_RUN
        elif of_a_run and shown:
            if line.startswith(_STACK):
                shown = False
            elif not line.strip():
                continue
        if shown:
            yield line


def run(command: Sequence[str], say: Callable[[str], None]) -> None:
    """Run `command` until it ends by itself, and `say` what of its output is for a person.

    Whatever ends this call ends the command's processes too, all of them, within some seconds; if this process is killed, the command is
    told to end. Raises PairedIndexError if it ends by itself.
    """
    control = ctypes.CDLL(None).prctl
    control(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what its processes leave behind when they end comes to us
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=lambda: control(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
    )
    try:
        for line in readable(child.stdout or ()):
            say(line.rstrip("\n"))
    finally:
        end_family(child)
    raise PairedIndexError(f"Dagster ended by itself, with exit status {child.returncode}; what it said stands above")


def end_family(child: subprocess.Popen[str]) -> None:
    """Ask `child` to end, and after `ORDERLY_SECONDS` end it and all that came from it."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}  # a second Ctrl-C
    try:
        child.terminate()
        deadline = time.monotonic() + ORDERLY_SECONDS
        while _living(os.getpid()) and time.monotonic() < deadline:
            child.poll()
            time.sleep(LOOK_SECONDS)
        while left := _living(os.getpid()):
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(LOOK_SECONDS)
        child.wait()
        with suppress(ChildProcessError):  # what its processes left behind is ours to bury
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _living(ancestor: int) -> list[int]:
    """The processes that come from `ancestor` and have not ended."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, ask = [], [ancestor]
    while ask:
        below = children.get(ask.pop(), [])
        found += below
        ask += below
    return found


def dagster_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dagster", *arguments]
