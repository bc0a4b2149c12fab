"""A tar read front to back as a stream, and read to its end or not: Python's tarfile ends without a word at a header it cannot read.

A tar is whole when two blocks of zeros follow its last member and nothing but zeros follows them. Anything else raises `TarBroken`, which
says where reading ended. Names come from ustar, GNU (long names) and pax headers; nothing is extracted, no link is followed.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa

BLOCK = tarfile.BLOCKSIZE
READ_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20  # of a long name or of pax records: real ones have some hundred bytes
MAX_MEMBER_BYTES = 1 << 60  # what a header may claim: a number that arithmetic on offsets can hold

Kind = Literal["file", "folder", "link", "sparse file", "device"]
_KINDS: dict[bytes, Kind] = {
    tarfile.LNKTYPE: "link",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "device",
    tarfile.DIRTYPE: "folder",
    tarfile.GNUTYPE_SPARSE: "sparse file",
}
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_WITHOUT_CONTENT = tuple(kind for kind in _KINDS if kind != tarfile.GNUTYPE_SPARSE)  # whatever size their headers give


class TarBroken(Exception):
    """Reading ended before the tar did: at byte `offset` (of what is inside, where it is compressed), inside `member` or between two."""

    def __init__(self, offset: int, why: str, member: str = "") -> None:
        super().__init__(f"reading ended at byte {offset} ({why})")
        self.member = member


@dataclass(frozen=True)
class Member:
    """`read` gives the content of a file (its first `most` bytes), while this member is the last that `walk` gave; `note` is what was odd
    about its header. `offset` is where the content begins in the file, None in a compressed one."""

    name: str
    kind: Kind
    size: int
    note: str = ""
    offset: int | None = None
    _stream: Any = field(default=None, repr=False, compare=False)

    def read(self, most: int = MAX_MEMBER_BYTES) -> bytes:
        return cast(bytes, self._stream.content(most))


def walk(raw: BinaryIO) -> Iterator[Member]:
    """The members of a tar, plain or compressed by gzip, bzip2, xz or zstd, recognised by its first bytes. Raises TarBroken."""
    return _Walk(*_decompressed(raw)).members()


@dataclass
class _Ahead:
    """What extended headers said about the member after them."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False
    note: str = ""


class _Walk:
    def __init__(self, stream: Any, length: int | None) -> None:
        self._stream = stream
        self._length = length  # of a stream that can seek; None where only reading tells
        self._plain = isinstance(stream, io.BufferedReader)  # not compressed
        self._at = 0
        self._inside = ""  # the member whose content is next in the stream
        self._left = 0  # bytes of it not read yet
        self._padding = 0  # bytes after it

    def members(self) -> Iterator[Member]:
        everywhere = ahead = _Ahead()
        while True:
            self._finish_member()
            start = self._at
            block = self._read(BLOCK, "the two blocks of zeros that end a tar")
            if block.count(0) == BLOCK:
                return self._end(start)
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise TarBroken(start, f"no header of a member is there: {error}") from error
            extended = header.type in _EXTENDED
            size = header.size if extended or ahead.size is None else ahead.size
            if not 0 <= size <= (MAX_HEADER_BYTES if extended else MAX_MEMBER_BYTES):
                raise TarBroken(start, f"{'an extended header' if extended else 'a member'} of {size} bytes")
            if extended:
                self._expect("", size, start)
                content = self.content()
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    ahead = replace(ahead, name=content.rstrip(b"\0").decode("utf-8", "surrogateescape"))
                elif header.type == tarfile.XGLTYPE:
                    everywhere = ahead = _pax(content, everywhere)
                elif header.type != tarfile.GNUTYPE_LONGLINK:
                    ahead = _pax(content, ahead)
                continue
            kind = "sparse file" if ahead.sparse else _KINDS.get(header.type, "file" if header.type in _PLAIN else "device")
            name = named(header.name if ahead.name is None else ahead.name)
            if header.type == tarfile.GNUTYPE_SPARSE:
                self._skip_sparse_map(block)
            self._expect(name, 0 if header.type in _WITHOUT_CONTENT else size, start)
            yield Member(name, kind, size, ahead.note, self._at if self._plain else None, self)
            ahead = everywhere

    def content(self, most: int = MAX_MEMBER_BYTES) -> bytes:
        pieces = []
        most = min(most, self._left)
        while most:
            pieces.append(self._read(min(most, READ_BYTES)))
            most -= len(pieces[-1])
            self._left -= len(pieces[-1])
        return b"".join(pieces)

    def _expect(self, name: str, size: int, start: int) -> None:
        self._inside = name
        if self._length is not None and self._at + size > self._length:
            raise TarBroken(start, f"the file ends inside a member, after {self._length} bytes", name)
        self._left, self._padding = size, -size % BLOCK

    def _finish_member(self) -> None:
        if self._length is not None and self._left + self._padding:
            self._at = min(self._at + self._left + self._padding, self._length)  # padding that is cut off is seen at the next header
            self._stream.seek(self._at)
        else:
            while self._left:
                self._left -= len(self._read(min(self._left, READ_BYTES)))
            self._inside = ""
            self._read(self._padding, "the padding of its last member")
        self._inside, self._left, self._padding = "", 0, 0

    def _skip_sparse_map(self, block: bytes) -> None:
        more = bool(block[482])
        while more:
            more = bool(self._read(BLOCK)[504])

    def _end(self, start: int) -> None:
        if self._read(BLOCK, "a second block of zeros").strip(b"\0"):
            raise TarBroken(start, "one block of zeros where two end a tar")
        while True:
            at = self._at
            piece = self._some(READ_BYTES)
            if not piece:
                return
            if piece.strip(b"\0"):
                raise TarBroken(at, "more follows the end of the tar: several, one after another?")

    def _read(self, count: int, what: str = "") -> bytes:
        """Exactly `count` bytes: of the member it is in, or of `what` a tar has there."""
        start, pieces, wanted = self._at, [], count
        while wanted and (piece := self._some(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        if wanted:
            why = f"the file ends without {what}" if what else "the file ends inside a member"
            raise TarBroken(start, why, self._inside)
        return b"".join(pieces)

    def _some(self, most: int) -> bytes:
        try:
            piece = cast(bytes, self._stream.read(most))
        except _DAMAGE as error:
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and error.errno is not None:
                raise  # the disk or the network, not the file
            raise TarBroken(self._at, f"its compression is damaged: {' '.join(str(error).split())[:80]}", self._inside) from error
        self._at += len(piece)
        return piece


_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)  # gzip, bz2 and Arrow raise OSError without a number for damage


def _decompressed(raw: BinaryIO) -> tuple[Any, int | None]:
    """The stream to walk, and its length where it can be known and sought in."""
    stream = io.BufferedReader(cast(io.RawIOBase, raw), READ_BYTES)
    head = stream.peek(6)[:6]
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=stream), None
    if head.startswith(b"BZh"):
        return bz2.BZ2File(stream), None
    if head == b"\xfd7zXZ\0":
        return lzma.LZMAFile(stream), None
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd"), None
    try:
        length = stream.seek(0, io.SEEK_END)
    except (ValueError, OSError):  # a server that answers no ranges: front to back is all there is
        return stream, None
    stream.seek(0)
    return stream, length


def _pax(content: bytes, before: _Ahead) -> _Ahead:
    """Records ``length key=value\\n``; what of them cannot be read is left out, and reported."""
    found = replace(before)
    try:
        while content.strip(b"\0"):
            digits, _, _ = content.partition(b" ")
            if not digits.isdigit():
                raise ValueError(digits)
            length = int(digits)
            record, rest = content[len(digits) + 1 : length], content[length:]
            key, equals, value = record.partition(b"=")
            if not equals or not value.endswith(b"\n") or length > len(content):
                raise ValueError(key)
            value, content = value[:-1], rest
            if key in (b"path", b"GNU.sparse.name"):
                found = replace(found, name=value.decode("utf-8", "surrogateescape"))
            elif key == b"size":
                found = replace(found, size=int(value))
            if key.startswith(b"GNU.sparse."):
                found = replace(found, sparse=True)
    except ValueError:
        return replace(found, note="pax header that cannot be read")
    return found


def named(name: str) -> str:
    """A member's name as text that every file can hold: bytes that are not UTF-8 are written ``\\xff``, so no two names become one."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
