"""Files of arrays behind a JSON header, checked as a whole:

    magic      8 bytes
    length     8 bytes   little-endian int64: bytes of the header, padding included
    header     JSON (keys sorted), padded with spaces so that what follows starts at a multiple of 64
    body       what the header says
    sha256     32 bytes  of everything before

Whoever owns a format on top of it names the magic and what is in header and body.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upath import UPath

from paired_index_assets.errors import DamagedArtifact

ALIGNMENT = 64
HEAD_BYTES = 1 << 16  # of a file: magic, length and a header that names it, many times over
DIGEST_BYTES = 32
PREFIX = struct.Struct("<8sq")


def pack_head(magic: bytes, header: Mapping[str, Any]) -> bytes:
    """Magic, length and header: all before the body."""
    text = json.dumps(header, sort_keys=True).encode()
    padding = -(PREFIX.size + len(text)) % ALIGNMENT
    return PREFIX.pack(magic, len(text) + padding) + text + b" " * padding


def unpack_head(path: UPath | Path, magic: bytes, head: bytes, cure: str) -> tuple[dict[str, Any], int]:
    """The header in the first bytes of the file at `path`, and where its body starts. Raises DamagedArtifact, which ends in `cure`."""
    try:
        found, length = PREFIX.unpack_from(head)
        if found != magic or not 0 < length <= HEAD_BYTES - PREFIX.size:
            raise ValueError(f"it starts with {head[:8]!r}, not {magic!r}")
        header = json.loads(head[PREFIX.size : PREFIX.size + length])
        if not isinstance(header, dict):
            raise TypeError(f"its header is a {type(header).__name__}")
    except (struct.error, ValueError, TypeError) as error:
        raise DamagedArtifact(f"{path}: expected a file that starts with {magic!r}, found another ({error}); {cure}") from error
    return header, PREFIX.size + length
