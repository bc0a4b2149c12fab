"""How functions are compiled (numba), and where what was compiled is kept.

numba looks at the file of a function only to see whether its kept machine code is old, not at the files of what it calls. So the folder is
named by the content of all files of the room with compiled functions: a change in one of them compiles all of that room again (some ten
seconds, once).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import config

from paired_index_assets.files.cache import CACHE_FOLDER
from paired_index_assets.files.storage import digest_of_parts

_CONFIG: Any = config
SUMS_IN_ANY_ORDER = {"reassoc", "contract", "nsz"}  # one order a machine: the same for one query and in a batch


def compiled(function: Callable[..., Any]) -> Any:
    """`function` as machine code that releases the GIL and is kept from one process to the next. Sums may be in another order."""
    return _kept(function, SUMS_IN_ANY_ORDER)


def compiled_as_written(function: Callable[..., Any]) -> Any:
    """The same with each operation of floating point as it is written, so that numbers are the same on every processor."""
    return _kept(function, False)


def _kept(function: Callable[..., Any], fastmath: Any) -> Any:
    before, _CONFIG.CACHE_DIR = _CONFIG.CACHE_DIR, str(_folder(Path(function.__code__.co_filename).parent))  # read by the decorator only
    try:
        return njit(nogil=True, cache=True, fastmath=fastmath)(function)
    finally:
        _CONFIG.CACHE_DIR = before


@cache
def _folder(room: Path) -> Path:
    """In NUMBA_CACHE_DIR or else under the user's cache, never beside the installed package, which may be read-only; of this process alone
    where that cannot be written (what is kept is trusted: no folder that others may)."""
    contents = [file.read_bytes() for file in sorted(room.glob("*.py"))]
    name = digest_of_parts(*(content for content in contents if b"numba" in content or b"@compiled" in content))[:16]
    folder = (Path(_CONFIG.CACHE_DIR) if _CONFIG.CACHE_DIR else Path(CACHE_FOLDER).expanduser() / "compiled") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="paired-index-"))


def is_compiled(room: str) -> bool:
    """Whether machine code for these sources of a room of this package is kept on this machine: else the first use takes some 15 s more."""
    return next(_folder(Path(__file__).parents[1] / room).rglob("*.nbc"), None) is not None
