"""`paired-index serve`: clip-retrieval's knn-service over HTTP, health, metrics, and a page to search with.

    POST /knn-service   {"text" | "image" | "embedding_input", "num_images", ...} -> [{"id", "similarity", ...}]
    POST /metadata      {"ids"} -> [{"id", "metadata"}]
    GET  /indices-list  /healthz  /metrics  /

A request that can not be served is answered with 4xx and ``{"error": why}``; what goes wrong in here with 500 and no detail.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import resources
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from paired_index_assets.errors import BadInput
from paired_index_assets.serving.service import KnnRequest, MetadataRequest, SearchService

LOG = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
OWN_NAMES = ("localhost", "127.0.0.1")  # a page elsewhere whose name is made to point here is not answered
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}

Body = TypeVar("Body", bound=BaseModel)
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
        self.missing = Gauge("paired_index_missing_shards", "Shards of the manifest that are not searched", registry=self.registry)
        self.reloads = Gauge("paired_index_reloads", "Newer sets of shards taken over", registry=self.registry)

    def stage(self, name: str) -> AbstractContextManager[Any]:
        timer: AbstractContextManager[Any] = self.seconds.labels(name).time()
        return timer


class _Server:
    def __init__(self, service: SearchService) -> None:
        self.service, self.metrics = service, Metrics()
        self._waiting = 0
        self._threads: anyio.CapacityLimiter | None = None
        self._page = resources.files("paired_index_assets.serving").joinpath("page", "index.html").read_text("utf-8")
        self._policy = _policy(self._page)

    async def knn(self, request: Request) -> Response:
        wanted = await self._body(request, KnnRequest)
        with self.metrics.stage("request"):
            return JSONResponse(await self._in_thread(partial(self.service.knn, wanted, self.metrics.stage)))

    async def metadata(self, request: Request) -> Response:
        wanted = await self._body(request, MetadataRequest)
        return JSONResponse(await self._in_thread(partial(self.service.metadata, wanted)))

    async def indices(self, request: Request) -> Response:
        return JSONResponse([self.service.name])

    async def healthz(self, request: Request) -> Response:
        return JSONResponse(await self._in_thread(self.service.health))

    async def metrics_text(self, request: Request) -> Response:
        health = await self._in_thread(self.service.health)
        self.metrics.vectors.set(health["vectors"])
        self.metrics.shards.set(health["shards"])
        self.metrics.missing.set(len(health["missing_shards"]))
        self.metrics.reloads.set(health["reloads"])
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def page(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html", headers={"Content-Security-Policy": self._policy})

    def counted(self, answer: Callable[[Request], Awaitable[Response]], *, limited: bool) -> Callable[[Request], Awaitable[Response]]:
        """`answer`, with its outcome counted, its errors in JSON, and no more than `limits.at_once` of the limited ones at a time."""

        async def answered(request: Request) -> Response:
            if limited and self._waiting >= self.service.limits.at_once:
                response: Response = _refusal(503, f"busy: {self._waiting} requests are waiting; try again")
                response.headers["Retry-After"] = "1"
            else:
                with self._counted_in() if limited else nullcontext():
                    response = await _outcome(answer, request)
            self.metrics.requests.labels(request.url.path, str(response.status_code)).inc()
            response.headers.update({name: value for name, value in SAFE.items() if name not in response.headers})
            return response

        return answered

    def _counted_in(self) -> AbstractContextManager[None]:
        return _Count(self)

    async def _in_thread(self, work: Callable[[], Done]) -> Done:
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(self.service.limits.threads)
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    async def _body(self, request: Request, kind: type[Body]) -> Body:
        """The request's JSON. Raises HTTPException for a body too large or too slow, BadInput for one of other content."""
        limit, content = self.service.limits.body, bytearray()
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > limit:
            raise HTTPException(413, f"body: expected at most {limit} bytes, found {declared[:20]}")
        try:
            async with asyncio.timeout(self.service.limits.body_seconds):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > limit:
                        raise HTTPException(413, f"body: expected at most {limit} bytes, found more")
        except TimeoutError as error:
            raise HTTPException(408, "body: did not arrive in time") from error
        return await self._in_thread(partial(_parsed, bytes(content), kind))


class _Count:
    """One request more while the block runs."""

    def __init__(self, server: _Server) -> None:
        self._server = server

    def __enter__(self) -> None:
        self._server._waiting += 1
        self._server.metrics.in_flight.inc()

    def __exit__(self, *_: object) -> None:
        self._server._waiting -= 1
        self._server.metrics.in_flight.dec()


def make_app(service: SearchService, *, allowed_hosts: Sequence[str] = OWN_NAMES) -> Starlette:
    """The ASGI application. `allowed_hosts` are the names it answers to (``["*"]``: any)."""
    server = _Server(service)
    routes = [
        Route("/knn-service", server.counted(server.knn, limited=True), methods=["POST"]),
        Route("/metadata", server.counted(server.metadata, limited=True), methods=["POST"]),
        Route("/indices-list", server.counted(server.indices, limited=False)),
        Route("/healthz", server.counted(server.healthz, limited=False)),
        Route("/metrics", server.metrics_text),
        Route("/", server.counted(server.page, limited=False)),
    ]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _http_refusal, Exception: _failure})


def serve(app: Starlette, host: str = LOOPBACK, port: int = 1234) -> None:
    """Answer requests until interrupted. Open to this machine only, unless `host` says otherwise."""
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False, timeout_keep_alive=30, limit_concurrency=1024)


async def _outcome(answer: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
    try:
        return await answer(request)
    except HTTPException as error:
        return _refusal(error.status_code, str(error.detail))
    except BadInput as error:
        return _refusal(400, str(error))
    except ClientDisconnect:
        return _refusal(400, "body: cut off")
    except Exception as error:
        return _failure(request, error)


def _parsed(content: bytes, kind: type[Body]) -> Body:
    try:
        given = json.loads(content)
    except (ValueError, RecursionError) as error:  # not UTF-8 and numbers of too many digits are ValueErrors
        raise BadInput(f"body: expected JSON, found {type(error).__name__}") from error
    if not isinstance(given, dict):
        raise BadInput(f"body: expected a JSON object, found {type(given).__name__}")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise BadInput("; ".join(_said(problem) for problem in error.errors(include_url=False, include_input=False)[:3])) from error


def _said(problem: Any) -> str:
    where = ".".join(str(part)[:40] for part in problem["loc"]) or "body"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"


def _refusal(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(reason.split())[:500]}, status)


def _http_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)


def _failure(request: Request, error: Exception) -> Response:
    LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _refusal(500, "this request could not be served; the server's log says why")


def _policy(page: str) -> str:
    """A Content-Security-Policy that lets the page's own script and style run, data: pictures show, and nothing else load."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks)

    own = f"script-src {hashes('script')}; style-src {hashes('style')}; img-src data:; connect-src 'self'"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
