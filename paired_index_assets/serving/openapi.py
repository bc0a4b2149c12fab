"""What the server answers, as an OpenAPI document and as a page of it.

Weighed against FastAPI, which makes both: its page loads its code from another host, it reads a whole body before it looks at it and
collects every mistake in it, and to have neither every route would describe itself by hand as here. This is the shorter one.
"""

from __future__ import annotations

import html
import json
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from paired_index_assets.serving.requests import KnnRequest, MetadataRequest


class Hit(BaseModel):
    """One result; beside these fields the columns of its metadata (`caption`, `url`, `key`, ...)."""

    model_config = ConfigDict(extra="allow")

    id: int = Field(description="Global row id.")
    similarity: float = Field(description="Inner product of the query with the stored vector.")
    image: str | None = Field(None, description="The picture, base64, where there is one: of the first `num_images` results.")
    vector: list[float] | None = Field(None, description="Its stored vector, where `with_vectors` asks for it.")


class Described(BaseModel):
    """An id and its row."""

    id: int
    metadata: dict[str, Any] = Field(description="The columns of its metadata, and its picture as base64 in `image`.")


class Health(BaseModel):
    """`ready` is what a load balancer asks for: searches work."""

    model_config = ConfigDict(extra="allow")

    status: str = Field(description="`ok`, or `degraded` where shards are missing or a newer set cannot be opened.")
    ready: bool
    vectors: int
    shards: int
    missing_shards: list[int]


class Refusal(BaseModel):
    """Why a request was not answered, in one line."""

    error: str


ANSWERS = {
    400: "The request cannot be answered; `error` says which field, what was expected and what was found.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    500: "A fault of the server; its log says why.",
    503: "Too many requests wait, or nothing can be searched just now; `Retry-After` says when to try again.",
}
EXAMPLES = {
    "/knn-service": {"text": "a red bicycle", "num_images": 10, "deduplicate": True},
    "/metadata": {"ids": [1, 2, 3]},
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    models: list[type[BaseModel]] = [KnnRequest, MetadataRequest, Hit, Described, Health, Refusal]
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template="#/components/schemas/{model}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Paired Index",
            "version": version("paired-index-assets"),
            "description": "clip-retrieval's knn-service on a sharded index.",
        },
        "paths": {
            "/knn-service": {"post": _asked("Search", KnnRequest, Hit)},
            "/metadata": {"post": _asked("Metadata of ids", MetadataRequest, Described)},
            "/indices-list": {"get": _operation("Names of the indices", {"type": "array", "items": {"type": "string"}})},
            "/healthz": {"get": _operation("Whether searches work (else 503)", _ref(Health), also=(503,))},
            "/metrics": {"get": _operation("For Prometheus", {"type": "string"}, "text/plain")},
        },
        "components": {"schemas": schemas["$defs"]},
    }


def _asked(summary: str, request: type[BaseModel], item: type[BaseModel]) -> dict[str, Any]:
    path = "/knn-service" if request is KnnRequest else "/metadata"
    operation = _operation(summary, {"type": "array", "items": _ref(item)})
    body = {"required": True, "content": {"application/json": {"schema": _ref(request), "example": EXAMPLES[path]}}}
    refused = {str(status): _answer(text, _ref(Refusal)) for status, text in ANSWERS.items()}
    return {**operation, "requestBody": body, "responses": operation["responses"] | refused}


def _operation(summary: str, schema: dict[str, Any], kind: str = "application/json", also: tuple[int, ...] = ()) -> dict[str, Any]:
    answers = {"200": _answer("Answered", schema, kind)} | {str(status): _answer("Not now", schema, kind) for status in also}
    return {"summary": summary, "operationId": summary.split(" (")[0].lower().replace(" ", "-"), "responses": answers}


def _answer(text: str, schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"description": text, "content": {kind: {"schema": schema}}}


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def page(described: dict[str, Any]) -> str:
    """The document as HTML that loads nothing: each path with its fields and an example for curl."""
    schemas = described["components"]["schemas"]
    sections = []
    for path, operations in described["paths"].items():
        ((method, operation),) = operations.items()
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        example, fields = "", ""
        if body:
            example = f" -H 'Content-Type: application/json' -d '{json.dumps(body['example'])}'"
            fields = _table(schemas[body["schema"]["$ref"].rpartition("/")[2]])
        item = operation["responses"]["200"]["content"].get("application/json", {}).get("schema", {})
        answered = (item.get("items", item)).get("$ref", "").rpartition("/")[2]
        answer = f"<h3>Answer</h3>{_table(schemas[answered])}" if answered else ""
        refused = "".join(f"<dt>{code}<dd>{html.escape(answer['description'])}" for code, answer in operation["responses"].items())
        sections.append(
            f"<section><h2><code>{method.upper()} {path}</code></h2><p>{html.escape(operation['summary'])}</p>"
            f"<pre>curl http://127.0.0.1:1234{path}{html.escape(example)}</pre>{fields}{answer}<dl>{refused}</dl></section>"
        )
    return _PAGE.format(sections="".join(sections))


def _table(schema: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(_kind(field))}<td>{html.escape(field.get('description', ''))}"
        for name, field in schema["properties"].items()
    )
    return f"<div><table><tr><th>field<th>type<th>what it is{rows}</table></div>"


def _kind(field: dict[str, Any]) -> str:
    kinds = [one.get("type", "any") for one in field.get("anyOf", [field])]
    default = field.get("default")
    return " or ".join(kinds) + (f" = {json.dumps(default)}" if default is not None else "")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Paired Index API</title>
<link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
section {{ border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); padding: .5rem 0 1rem }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; padding: .7rem; border-radius: .5rem; background: color-mix(in srgb, currentColor 8%, transparent) }}
div {{ overflow-x: auto }} table {{ border-collapse: collapse }} td, th {{ text-align: left; vertical-align: top; padding: .2rem .9rem .2rem 0 }}
dt {{ float: left; clear: left; width: 3.5rem; font-weight: 600 }} dd {{ margin: 0 0 .2rem 3.5rem }}
</style></head><body><h1>Paired Index API</h1>
<p>Requests and answers are those of clip-retrieval's server. <a href="openapi.json">openapi.json</a> · <a href=".">search page</a></p>
{sections}</body></html>
"""
