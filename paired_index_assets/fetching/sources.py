"""Where landing files are fetched from: folders by URL, in the order given. One verb: open a file at a byte offset.

http(s) goes through requests, because a resume must be able to say If-Range; every other scheme (s3, gs, hf, a mounted folder) through
fsspec. Only these two classes know how a server says no.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from upath import UPath

from paired_index_assets.files.listing import ListedFile, entry_at
from paired_index_assets.files.storage import as_path, is_local

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 1 << 20
RANGE_BYTES = 8 << 20  # one fsspec request
USER_AGENT = "paired-index"
TRY_LATER = {408, 425, 429}  # and every 5xx


class NotAtSource(Exception):
    """This source does not have the file, or does not give it to us; asking again will not help."""


class TemporaryFault(Exception):
    """Something that may be gone next time."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Changed(TemporaryFault):
    """The content there is not the one we have a part of."""


@dataclass(frozen=True)
class Answer:
    """Bytes from `start` on. `start` is 0 where the source did not resume; `version` is None where it cannot name its content."""

    start: int
    size: int | None
    version: str | None
    chunks: Iterator[bytes]


class FileSource(Protocol):
    """Raises NotAtSource or TemporaryFault, from `open` and from the chunks."""

    @property
    def url(self) -> str: ...

    def open(self, name: str, start: int, version: str | None, patience: Patience) -> AbstractContextManager[Answer]:
        """`name` from byte `start` if the content is still `version`, from byte 0 otherwise."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds."""

    connect_s: float = 15.0
    stall_s: float = 60.0  # no byte for so long
    slow_bytes_per_s: int = 16 << 10  # less than this over a whole stall_s counts as stalled


@dataclass
class Politeness:
    """At most `max_parallel` requests at a time and one every `min_interval_s` to the same host, for all threads that share this."""

    max_parallel: int = 4
    min_interval_s: float = 0.0
    _hosts: dict[str, tuple[threading.Semaphore, list[float]]] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def turn(self, url: str) -> Iterator[None]:
        with self._lock:
            slots, next_start = self._hosts.setdefault(urlsplit(url).netloc, (threading.Semaphore(self.max_parallel), [0.0]))
        with slots:
            with self._lock:
                now = time.monotonic()
                wait = max(0.0, next_start[0] - now)
                next_start[0] = now + wait + self.min_interval_s
            time.sleep(wait)
            yield


@dataclass(frozen=True)
class HttpSource:
    url: str

    @contextmanager
    def open(self, name: str, start: int, version: str | None, patience: Patience) -> Iterator[Answer]:
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        if start and version:
            headers |= {"Range": f"bytes={start}-", "If-Range": version}
        import requests

        with _http_faults():
            response = requests.get(_joined(self.url, name), headers=headers, stream=True, timeout=(patience.connect_s, patience.stall_s))
        with response:
            yield self._answer(response, start, version, patience)

    def _answer(self, response: requests.Response, start: int, version: str | None, patience: Patience) -> Answer:
        status = response.status_code
        if status in TRY_LATER or status >= 500:
            raise TemporaryFault(f"HTTP {status} {response.reason}", _retry_after(response))
        if status == 416:  # the file is shorter than what we have of it, so it is another one
            raise Changed("HTTP 416: the file there is shorter than the part we have")
        if status not in (200, 206):
            raise NotAtSource(f"HTTP {status} {response.reason}")
        found = _version_of_response(response)
        chunks = _unhurried(response, patience)
        length = response.headers.get("Content-Length")
        if status == 200:
            kind = response.headers.get("Content-Type", "")
            if kind.startswith("text/html"):
                raise TemporaryFault(f"an HTML page ({length or '?'} bytes) in place of the file")
            return Answer(0, int(length) if length and length.isdigit() else None, found, chunks)
        begin, _, size = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if begin.split("-")[0] != str(start) or found != version:  # a server that answers If-Range wrongly
            raise Changed(f"a range of another file (Content-Range {begin!r}, version {found})")
        return Answer(start, int(size) if size.isdigit() else None, found, chunks)


@dataclass(frozen=True)
class FsspecSource:
    url: str

    @contextmanager
    def open(self, name: str, start: int, version: str | None, patience: Patience) -> Iterator[Answer]:
        with _fsspec_faults():
            path = as_path(self.url) / name
            entry = entry_at(path)
        begin = start if version == entry.stamp else 0
        yield Answer(begin, entry.size, entry.stamp, self._ranges(path, begin, entry))

    def _ranges(self, path: UPath, start: int, entry: ListedFile) -> Iterator[bytes]:
        with _fsspec_faults():
            for at in range(start, entry.size, RANGE_BYTES):
                yield path.fs.cat_file(path.path, start=at, end=min(at + RANGE_BYTES, entry.size))
            if entry_at(path).stamp != entry.stamp:
                raise Changed("it changed while it was read")


def source_at(url: str) -> FileSource:
    return HttpSource(url) if url.startswith(("http://", "https://")) else FsspecSource(url)


def is_folder(url: str) -> bool:
    """A local or mounted folder: its files are used where they are, never copied."""
    return is_local(as_path(url))


def parse_sources(urls: str | Iterable[str] | None) -> list[str]:
    """Source URLs from a comma-separated setting or a list, without blanks, in order."""
    listed = urls.split(",") if isinstance(urls, str) else urls or ()
    return [url.strip() for url in listed if url.strip()]


def shown(url: str) -> str:
    """A URL for messages: without password, token or query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _joined(url: str, name: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


@contextmanager
def _http_faults() -> Iterator[None]:
    import requests
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (requests.RequestException, HTTPError, OSError) as error:
        raise TemporaryFault(_reason(error)) from error


@contextmanager
def _fsspec_faults() -> Iterator[None]:
    try:
        yield
    except TemporaryFault:
        raise
    except (FileNotFoundError, PermissionError, ImportError) as error:
        raise NotAtSource(_reason(error)) from error
    except Exception as error:  # every fsspec back end has its own errors
        raise TemporaryFault(_reason(error)) from error


def _unhurried(response: requests.Response, patience: Patience) -> Iterator[bytes]:
    """The body as it comes. The socket's timeout sees silence; a trickle is seen here."""
    since, got = time.monotonic(), 0
    with _http_faults():
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
            yield chunk
            got += len(chunk)
            now = time.monotonic()
            if now - since > patience.stall_s:
                if got < patience.slow_bytes_per_s * (now - since):
                    raise TemporaryFault(f"only {got} bytes in {now - since:.0f} s")
                since, got = now, 0


def _version_of_response(response: requests.Response) -> str | None:
    """A validator that If-Range accepts: a strong ETag, or a date."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _retry_after(response: requests.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: requests wraps urllib3 wraps the socket's error."""
    while isinstance(cause := error.__cause__ or error.__context__ or getattr(error, "reason", None), BaseException):
        error = cause
    return f"{type(error).__name__}: {error}"[:300] if str(error) else type(error).__name__
