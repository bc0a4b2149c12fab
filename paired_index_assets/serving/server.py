"""`paired-index serve`: clip-retrieval's knn-service over HTTP, health, metrics, and a page to search with.

    POST /knn-service   {"text" | "image" | "embedding_input", "num_images", ...} -> [{"id", "similarity", ...}]
    POST /metadata      {"ids"} -> [{"id", "metadata"}]
    GET  /indices-list  /healthz  /metrics  /openapi.json  /docs  /

A request that cannot be served is answered with 4xx and ``{"error": why}``; what goes wrong in here with 500 and no detail.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import re
import resource
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from importlib import resources
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from paired_index_assets.rows import Float32
from paired_index_assets.serving import openapi
from paired_index_assets.serving.connections import Connection, Door
from paired_index_assets.serving.limits import Limits
from paired_index_assets.serving.open_set import OpenSet
from paired_index_assets.serving.requests import KnnRequest, MetadataRequest, parsed
from paired_index_assets.serving.responses import encoded, failure, http_refusal, json_of, outcome_of, page_of
from paired_index_assets.serving.service import SearchService

LOG = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
OWN_NAMES = ("localhost", "127.0.0.1")  # a page elsewhere whose name is made to point here is not answered
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
THREADS_OF = {"pictures": 1, "model": 1, "health": 2}
FILES_OF_ITS_OWN = 256  # besides connections
SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}

Done = TypeVar("Done")


class Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("paired_index_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("paired_index_stage_seconds", "Time in a stage", ["stage"], buckets=SECONDS, registry=self.registry)
        self.in_flight = Gauge("paired_index_in_flight", "Requests in work or waiting", registry=self.registry)
        self.vectors = Gauge("paired_index_vectors", "Vectors in lists", registry=self.registry)
        self.shards = Gauge("paired_index_shards", "Shards searched", registry=self.registry)
        self.missing = Gauge("paired_index_missing_shards", "Shards of the catalog that are not searched", registry=self.registry)
        self.reloads = Gauge("paired_index_reloads", "Newer sets of shards taken over", registry=self.registry)

    def stage(self, name: str) -> AbstractContextManager[Any]:
        timer: AbstractContextManager[Any] = self.seconds.labels(name).time()
        return timer


class _Server:
    def __init__(self, service: SearchService) -> None:
        self.service, self.metrics, self.limits = service, Metrics(), service.limits
        self._at_once, self._pictures = _Places(self.limits.at_once), _Places(self.limits.pictures_at_once)
        self._uploads: dict[asyncio.Timeout, None] = {}  # of large bodies that are coming in, oldest first
        self._threads: dict[str, anyio.CapacityLimiter] = {}
        self._page = resources.files("paired_index_assets.serving").joinpath("page", "index.html").read_text("utf-8")
        self._api = openapi.document()

    async def knn(self, request: Request) -> Response:
        body = await self._body(request)
        with self._at_once.one_more(), self.metrics.stage("request"):
            wanted = await self._in_thread(partial(parsed, body, KnnRequest, self.limits))
            del body
            self.service.checked(wanted)
            found = self.service.ready_set()
            vector = await self._vector(wanted, found)
            return json_of(await self._in_thread(lambda: encoded(self.service.knn(wanted, found, vector, self.metrics.stage))))

    async def metadata(self, request: Request) -> Response:
        body = await self._body(request)
        with self._at_once.one_more():
            wanted = await self._in_thread(partial(parsed, body, MetadataRequest, self.limits))
            return json_of(await self._in_thread(lambda: encoded(self.service.metadata(wanted))))

    async def indices(self, request: Request) -> Response:
        return JSONResponse([self.service.name])

    async def healthz(self, request: Request) -> Response:
        health = await self._in_thread(self.service.health, "health")
        return JSONResponse(health, 200 if health["ready"] else 503)

    async def api(self, request: Request) -> Response:
        return JSONResponse(self._api)

    async def docs(self, request: Request) -> Response:
        return page_of(openapi.page(self._api))

    async def metrics_text(self, request: Request) -> Response:
        health = await self._in_thread(self.service.health, "health")
        self.metrics.in_flight.set(len(self._at_once))
        self.metrics.vectors.set(health["vectors"])
        self.metrics.shards.set(health["shards"])
        self.metrics.missing.set(len(health["missing_shards"]))
        self.metrics.reloads.set(health["reloads"])
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def page(self, request: Request) -> Response:
        return page_of(self._page)

    def counted(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """`answer`, with its outcome counted and its errors in JSON."""

        async def answered(request: Request) -> Response:
            response = await outcome_of(answer, request)
            self.metrics.requests.labels(request.url.path, str(response.status_code)).inc()
            response.headers.update({name: value for name, value in SAFE.items() if name not in response.headers})
            return response

        return answered

    async def _vector(self, wanted: KnnRequest, found: OpenSet) -> Float32:
        """What is asked for as a vector. Pictures are decoded one at a time, whatever their size, and the model takes one query at a time."""
        with self.metrics.stage("encode"):
            prepared = None
            if wanted.is_picture:
                with self._pictures.one_more():
                    prepared = await self._in_thread(partial(self.service.picture, wanted), "pictures")
            model = "model" if wanted.text or prepared is not None else ""
            return await self._in_thread(partial(self.service.vector, wanted, found, prepared), model)

    async def _in_thread(self, work: Callable[[], Done], kind: str = "") -> Done:
        """The result of `work`, in one of the few threads that there are for its kind: none waits for another kind's."""
        if kind not in self._threads:
            self._threads[kind] = anyio.CapacityLimiter(THREADS_OF.get(kind, self.limits.threads))
        return await anyio.to_thread.run_sync(work, limiter=self._threads[kind])

    async def _body(self, request: Request) -> bytes:
        """The request's body. Raises HTTPException for one too large or too slow.

        Of the large ones only so many are held at a time: when one more comes, the one that has been on its way for longest is cut off.
        """
        limits, content = self.limits, bytearray()
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > limits.body:
            raise HTTPException(413, f"body: expected at most {limits.body} bytes, found {declared[:20]}")
        patience = asyncio.timeout(limits.body_seconds)
        try:
            async with patience:
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > limits.body:
                        raise HTTPException(413, f"body: expected at most {limits.body} bytes, found more")
                    if len(content) > limits.json and patience not in self._uploads:
                        if len(self._uploads) >= limits.uploads:
                            oldest = next(iter(self._uploads))
                            del self._uploads[oldest]
                            oldest.reschedule(asyncio.get_running_loop().time())
                        self._uploads[patience] = None
        except TimeoutError as error:
            raise HTTPException(408, "body: did not arrive in time", headers={"Connection": "close"}) from error
        finally:
            self._uploads.pop(patience, None)
        return bytes(content)


class _Places:
    """Room for so many at a time."""

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, 0

    def __len__(self) -> int:
        return self._taken

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Raises HTTPException where all are taken."""
        if self._taken >= self._most:
            raise HTTPException(503, f"busy: {self._taken} requests are waiting; try again", headers={"Retry-After": "1"})
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class OneSlash:
    """A path with slashes that are doubled is the same path: clip-retrieval's front puts one more before each."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "//" in scope["path"]:
            scope = {**scope, "path": re.sub("/+", "/", scope["path"])}
        await self._app(scope, receive, send)


def make_app(service: SearchService, *, allowed_hosts: Sequence[str] = OWN_NAMES, cors: Sequence[str] = ()) -> Starlette:
    """The ASGI application. `allowed_hosts` are the names it answers to (``["*"]``: any), `cors` the origins whose pages may ask it."""
    server = _Server(service)
    routes = [
        Route("/knn-service", server.counted(server.knn), methods=["POST"]),
        Route("/metadata", server.counted(server.metadata), methods=["POST"]),
        Route("/indices-list", server.counted(server.indices)),
        Route("/healthz", server.counted(server.healthz)),
        Route("/metrics", server.metrics_text),
        Route("/openapi.json", server.counted(server.api)),
        Route("/docs", server.counted(server.docs)),
        Route("/", server.counted(server.page)),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False), Middleware(OneSlash)]
    if cors:
        let_in = Middleware(CORSMiddleware, allow_origins=list(cors), allow_methods=["GET", "POST"], allow_headers=["Content-Type"])
        middleware.insert(0, let_in)
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: http_refusal, Exception: failure})


def configured(app: Starlette, limits: Limits, **more: Any) -> uvicorn.Config:
    """How uvicorn is to serve `app`, with `limits` of connections."""
    door = Door(limits)
    return uvicorn.Config(
        app,
        http=partial(Connection, door),  # type: ignore[arg-type]  # it wants a class, and calls it
        ws="none",
        lifespan="off",
        log_level="error",
        server_header=False,
        timeout_keep_alive=math.ceil(limits.idle_seconds),
        timeout_graceful_shutdown=math.ceil(limits.body_seconds),
        **more,
    )


def serve(app: Starlette, limits: Limits, host: str = LOOPBACK, port: int = 1234) -> None:
    """Answer requests until interrupted. Open to this machine only, unless `host` says otherwise."""
    needed = limits.connections + FILES_OF_ITS_OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        limits = replace(limits, connections=min(limits.connections, most - FILES_OF_ITS_OWN))
    gc.collect()
    gc.freeze()  # what was loaded stays: else each hundred thousand objects of a hostile request cost a walk over all of it
    uvicorn.Server(configured(app, limits, host=host, port=port)).run()
