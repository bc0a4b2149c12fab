"""Untrusted picture bytes -> arrays an encoder takes, in worker processes. A bad picture is an outcome, never an exception.

The workers come from a fork server that imported torch and open_clip once: sixteen of them share that memory. A worker that dies on a
picture (a decoder's crash) costs that picture only.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from threading import Thread
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from paired_index_assets.embeddings.encoders import Encoder
from paired_index_assets.embeddings.rendering import UNDECODABLE, BadPicture, picture_of
from paired_index_assets.readers.captions import OK
from paired_index_assets.readers.sample import TOO_LARGE, Picture, Refused, Sample

NO_IMAGE = "no image"
MISSING_FILE = "missing file"
UNREADABLE_FILE = "unreadable file"
CRASHED = "decoder crashed"

CHUNK = 64  # pictures sent to a worker together: 10 MB of 224 x 224 RGB on the way back
AHEAD = 2  # chunks a worker has waiting

Chunk = Sequence[Picture]
Decoded = tuple[npt.NDArray[Any] | None, list[str]]  # the good pictures stacked (None: there is none), the outcome of each picture
Prepared = TypeVar("Prepared", bound=Sized)


@dataclass(frozen=True)
class PreparedSamples(Generic[Prepared]):
    """Samples without their pictures, the outcome of each, and what the encoder takes of the good ones (None: there is none)."""

    samples: list[Sample]
    outcomes: list[str]
    good: Prepared | None


def prepare_image(encoder: Encoder, picture: Picture) -> tuple[npt.NDArray[Any] | None, str]:
    """One picture as the encoder wants it, or None and the reason."""
    if picture is None:
        return None, NO_IMAGE
    if isinstance(picture, Refused):
        return None, picture.why
    try:
        content = picture.read()
    except FileNotFoundError:
        return None, MISSING_FILE
    except ValueError:
        return None, TOO_LARGE
    except Exception:  # a directory, no permission, a refused URL: each file system has its own
        return None, UNREADABLE_FILE
    try:
        return encoder.prepare_image(picture_of(content)), OK
    except BadPicture as bad:
        return None, bad.outcome
    except Exception:  # an encoder's own transform, on a picture it did not expect
        return None, UNDECODABLE


def prepare_chunk(encoder: Encoder, chunk: Chunk) -> Decoded:
    results = [prepare_image(encoder, picture) for picture in chunk]
    good = [array for array, _ in results if array is not None]
    return (np.stack(good) if good else None), [outcome for _, outcome in results]


_encoder: Encoder | None = None  # of a worker process: unpickled once, not with every chunk


def _start_worker(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal: the run ends its workers itself
    Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A killed run leaves no workers behind: waiting for a chunk, they would never notice."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(chunk: Chunk) -> Decoded:
    if _encoder is None:
        raise RuntimeError("a decoding worker was given work before its encoder")
    return prepare_chunk(_encoder, chunk)


_Sent = tuple[Chunk, ProcessPoolExecutor, Future[Decoded] | None]  # None: the pool had broken before


class ImagePool:
    """Chunks of samples in, blocks out, in order; a fixed number is under way. ``workers=0`` prepares in this process."""

    def __init__(self, encoder: Encoder, workers: int) -> None:
        self._encoder = encoder
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> ImagePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def prepare(self, chunks: Iterable[Sequence[Sample]]) -> Iterator[PreparedSamples[npt.NDArray[Any]]]:
        waiting: deque[tuple[list[Sample], _Sent]] = deque()
        for samples in chunks:
            pictures = [None if sample.problem else sample.image for sample in samples]
            kept = [replace(sample, image=None) for sample in samples]
            if self._workers == 0:
                yield _block(kept, prepare_chunk(self._encoder, pictures))
                continue
            waiting.append((kept, self._submit(pictures)))
            if len(waiting) > AHEAD * self._workers:
                yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: deque[tuple[list[Sample], _Sent]]) -> PreparedSamples[npt.NDArray[Any]]:
        kept, sent = waiting.popleft()
        return _block(kept, self._result(*sent))

    def _submit(self, chunk: Chunk) -> _Sent:
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["paired_index_assets.embeddings.preloaded"])
            self._pool = ProcessPoolExecutor(self._workers, context, _start_worker, (self._encoder,))
        try:
            return chunk, self._pool, self._pool.submit(_work, chunk)
        except BrokenProcessPool:
            return chunk, self._pool, None

    def _result(self, chunk: Chunk, pool: ProcessPoolExecutor, future: Future[Decoded] | None) -> Decoded:
        if future is not None:
            try:
                return future.result()
            except BrokenProcessPool:
                pass
        if pool is self._pool:
            pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        return self._carefully(chunk)

    def _carefully(self, chunk: Chunk) -> Decoded:
        """A chunk that was under way when a worker died: alone, then in halves, until the picture that kills it is on its own."""
        _, pool, future = self._submit(chunk)
        try:
            if future is not None:
                return future.result()
        except BrokenProcessPool:
            pass
        pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        if len(chunk) == 1:
            return None, [CRASHED]
        middle = len(chunk) // 2
        halves = [self._carefully(chunk[:middle]), self._carefully(chunk[middle:])]
        arrays = [array for array, _ in halves if array is not None]
        return (np.concatenate(arrays) if arrays else None), [outcome for _, outcomes in halves for outcome in outcomes]


def _block(samples: list[Sample], decoded: Decoded) -> PreparedSamples[npt.NDArray[Any]]:
    arrays, outcomes = decoded
    return PreparedSamples(samples, [sample.problem or outcome for sample, outcome in zip(samples, outcomes, strict=True)], arrays)


def default_workers() -> int:
    """One a core, but none on two cores or fewer: there the model's own threads fill them, and starting workers takes seconds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores > 2 else 0
