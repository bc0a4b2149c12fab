"""What is answered: JSON, the page under its Content-Security-Policy, and refusals in one line, ``{"error": why}``."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from paired_index_assets.errors import Transient
from paired_index_assets.serving.requests import BadRequest

LOG = logging.getLogger(__name__)


async def outcome_of(answer: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
    try:
        return await answer(request)
    except HTTPException as error:
        return http_refusal(request, error)
    except BadRequest as error:
        return refusal(400, str(error))
    except ClientDisconnect:
        return refusal(400, "body: cut off")
    except Transient as error:
        LOG.warning("%s: %s", request.url.path, error)
        return http_refusal(request, HTTPException(503, "not available just now; try again", headers={"Retry-After": "1"}))
    except Exception as error:
        return failure(request, error)


def encoded(hits: list[dict[str, Any]]) -> bytes:
    """JSON, hit by hit: no thread may hold the interpreter for as long as all of them take."""
    return b"[" + b",".join(json.dumps(hit, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") for hit in hits) + b"]"


def page_of(content: str) -> Response:
    return Response(content, media_type="text/html", headers={"Content-Security-Policy": _policy(content)})


def json_of(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def refusal(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(reason.split())[:500]}, status)


def http_refusal(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    answer = refusal(error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


def failure(request: Request, error: Exception) -> Response:
    LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return refusal(500, "this request could not be served; the server's log says why")


def _policy(page: str) -> str:
    """A Content-Security-Policy that lets the page's own script and style run, data: pictures show, and nothing else load."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks)

    own = f"script-src {hashes('script')}; style-src {hashes('style')}; img-src data:; connect-src 'self'"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
