"""Files that get their name only when they are complete and on disk.

Local files are written under a temporary name beside the target, flushed, and renamed. Object stores have no rename: there the
finished local file is uploaded with one put, which is atomic per object. What consists of several objects has a name for each content
(`versioned`), and a small object, written last, that says which one counts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput, OutOfDisk, PairedIndexError, SourceUnavailable
from paired_index_assets.extras import missing_extra
from paired_index_assets.files.deadline import within

CHUNK_BYTES = 1 << 22
LEAST_FREE_BYTES = 20_000_000  # Dagster's records of one small build
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
WITH_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}  # the first piece of a path must be there before anything is put
ATTEMPTS = 6  # at one request, beyond those of the store's own client
VERSION_LENGTH = 16  # hexadecimal digits of a content in its name on an object store
CONTENT_KEY = "content_sha256"  # of an object in a JSON file, less this
JSON_KINDS: dict[type, str] = {dict: "object", list: "list"}
REACH_SECONDS = 10.0  # for the first answer of a remote root
BACKOFF_S = 0.5  # doubled at each attempt, times a random 0.5 to 1

Result = TypeVar("Result")


def as_path(url: str | Path | UPath) -> UPath:
    """A local path or any fsspec URL (s3://, gs://, hf://, http://) as a path object; ``~`` is expanded.

    Listings are not remembered, as fsspec would: other machines write too. Raises BadInput for an unknown kind of URL.
    """
    if "://" not in str(url):
        return UPath(url).expanduser()
    try:
        return UPath(url, use_listings_cache=False)
    except ValueError as error:
        raise BadInput(f"{url}: {error}") from error


def is_local(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


def nearest_folder(path: UPath) -> Path:
    """The local folder `path`, or the first above it that exists: on its disk."""
    folder = Path(path.path).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def require_reachable(root: UPath) -> None:
    """Ask a remote `root` for something small. Raises BadInput or SourceUnavailable, in one line, where its file system, bucket or
    credentials are not there; a folder that does not exist yet is fine."""
    if is_local(root):
        return

    def ask() -> None:
        there = root.fs.exists(root.path) or root.protocol not in WITH_BUCKETS or root.fs.exists(root.path.split("/")[0])
        if not there:
            root.fs.info(root.path)  # says why, where that is not that there is no such bucket

    try:
        within(REACH_SECONDS, root, ask)
    except PairedIndexError:
        raise
    except FileNotFoundError as error:
        raise BadInput(
            f"{root}: there is no bucket {root.path.split('/')[0]!r}, or it is not for these credentials; make it first"
        ) from error
    except ImportError as error:
        raise missing_extra(error) or BadInput(f"{root}: {error}") from error
    except Exception as error:  # each file system has its own
        raise SourceUnavailable(
            f"{root}: cannot be reached ({_one_line(error)}); check the name, and the credentials and the endpoint in the environment"
        ) from error


def require_writable(root: UPath) -> None:
    """Make the local folder `root` and write into it. Raises OutOfDisk, or OSError naming the place, before anything long is started."""
    if not is_local(root):
        return
    folder = Path(root.path)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise OutOfDisk(f"{root}: {free / 1e6:.0f} MB free, expected at least {LEAST_FREE_BYTES / 1e6:.0f}; free some space")
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"?")


def patiently(what: UPath | Path | str, work: Callable[[], Result]) -> Result:
    """The result of a request, asked again while the other side fails.

    What will not get better is raised at once: no such file, no permission, an error of this project, a full disk. Raises
    SourceUnavailable naming `what` when it did not get better.
    """
    for attempt in range(ATTEMPTS):
        try:
            return work()
        except (FileNotFoundError, PermissionError, PairedIndexError, ValueError, TypeError):
            raise
        except Exception as error:  # each file system has its own, and most of them are no OSError
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                raise
            if attempt == ATTEMPTS - 1:
                raise SourceUnavailable(f"{what}: {_one_line(error)}, {ATTEMPTS} times; try again when it answers") from error
            time.sleep(BACKOFF_S * 2**attempt * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def head_of(path: UPath | Path, count: int) -> tuple[bytes, int]:
    """The first `count` bytes of a file (all, if it is shorter) and its length. Raises FileNotFoundError."""
    path = as_path(path)
    if not is_local(path):
        length = int(path.fs.info(path.path)["size"])
        return (path.fs.cat_file(path.path, start=0, end=min(count, length)) if length else b""), length
    with path.open("rb") as stream:
        return stream.read(count), os.fstat(stream.fileno()).st_size


def versioned(path: UPath, version: str) -> UPath:
    """`path` itself; on an object store, where several objects cannot be replaced together, a name for each content."""
    return path if is_local(path) else path.with_name(f"{path.name}.{version[:VERSION_LENGTH]}")


def remove_older(paths: Iterable[UPath], than: UPath) -> None:
    """Delete those of `paths` that were put before `than`; none if that is not there. For versions that no reader can be reading still."""
    try:
        limit = than.fs.modified(than.path)
    except FileNotFoundError:
        return
    for path in paths:
        if path.fs.modified(path.path) < limit:
            path.unlink(missing_ok=True)


@contextmanager
def atomic_file(target: UPath | Path) -> Iterator[Path]:
    """Yield a local temporary path; on a clean exit it becomes `target` in one step, otherwise it is gone.

    Raises OutOfDisk (naming `target`) when the disk is full.
    """
    with draft_of(target) as temporary:
        yield temporary
        publish(temporary, target)


@contextmanager
def draft_of(target: UPath | Path) -> Iterator[Path]:
    """Yield a local temporary path for what will be `target` or a version of it; `publish` gives it its name, or it is gone at the end.

    It lies beside a local target, and in the folder for temporary files (TMPDIR) for a remote one. Raises as `atomic_file`.
    """
    target = as_path(target)
    folder = Path(target.path).parent if is_local(target) else _scratch_folder()
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder, target.name)
    temporary = folder / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
    except OSError as error:
        if error.errno in FULL_DISK:
            raise OutOfDisk(f"{target}: no space left on the disk; free some and start again, finished files are kept") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def publish(draft: Path, target: UPath | Path) -> None:
    """Give a finished draft its name in one step: a rename after a flush, or one put."""
    target = as_path(target)
    with draft.open("rb+") as written:
        os.fsync(written.fileno())
    if is_local(target):
        os.replace(draft, Path(target.path))
        _sync_folder(Path(target.path).parent)
    else:
        patiently(target, lambda: target.fs.put_file(str(draft), target.path))


def publish_link(link: Path, to: Path) -> None:
    """Let a symbolic link be one to `to`, in one step whatever it was one to. Raises BadInput where the file system has no links."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    link.parent.mkdir(parents=True, exist_ok=True)
    _sweep(link.parent, link.name)
    try:
        temporary.symlink_to(to)
        os.replace(temporary, link)
    except PermissionError as error:
        raise BadInput(f"{link}: {error.strerror}: a link is expected to be possible here; choose a root on another file system") from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(link.parent)


def write_bytes(target: UPath | Path, content: bytes) -> None:
    with atomic_file(target) as temporary:
        temporary.write_bytes(content)


def write_json(target: UPath | Path, content: Any) -> None:
    """Write an object with the digest of its content in it, or a list."""
    if isinstance(content, dict):
        content = {**content, CONTENT_KEY: _digest_of_json(content)}
    write_bytes(target, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def read_json(source: UPath | Path, kind: type = dict, *, cure: str = "delete it and build again") -> Any:
    """What `write_json` wrote, less the digest. Raises MissingInput if there is no such file; DamagedArtifact, which ends in `cure`, if it
    is not JSON, not of the `kind`, or not what its digest says."""
    source = as_path(source)
    try:
        content: Any = json.loads(content_of(source))
    except FileNotFoundError as error:
        raise MissingInput(f"{source}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise DamagedArtifact(f"{source}: not JSON ({error}); {cure}") from error
    if not isinstance(content, kind):
        raise DamagedArtifact(f"{source}: expected a JSON {JSON_KINDS[kind]}, found {json.dumps(content)[:60]}; {cure}")
    found = cast(Any, content)
    recorded = found.pop(CONTENT_KEY, None) if kind is dict else None
    if recorded is not None and recorded != (digest := _digest_of_json(found)):
        raise DamagedArtifact(f"{source}: altered: its content has the digest {digest[:16]}, but it says {str(recorded)[:16]}; {cure}")
    return found


def _digest_of_json(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def content_of(source: UPath | Path) -> bytes:
    """The bytes of one version of a small file. Raises FileNotFoundError.

    Not by opening it: for a file that is replaced between the two requests of that, a store refuses the second.
    """
    source = as_path(source)
    content: bytes = source.read_bytes() if is_local(source) else patiently(source, lambda: source.fs.cat_file(source.path))
    return content


def digest_of(source: UPath | Path) -> str:
    """The sha256 of a file's bytes, hexadecimal."""
    sha = hashlib.sha256()
    with as_path(source).open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def digest_of_parts(*parts: str | bytes) -> str:
    """A sha256 over parts, each preceded by its length so that no two lists of parts collide."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _scratch_folder() -> Path:
    return Path(tempfile.gettempdir()) / "paired-index"


def _sweep(folder: Path, name: str) -> None:
    """Remove what killed writers of the same file left behind; a living writer's file stays."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        pid, *rest = leftover.name.removeprefix(f".{name}.").split(".")
        if (
            len(rest) == 2 and pid.isdigit() and not Path(f"/proc/{pid}").exists()
        ):  # else it is of another file, whose name begins like this
            leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
