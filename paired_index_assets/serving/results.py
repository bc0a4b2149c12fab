"""What was found, as rows of a table, JSON, npz, or one HTML page that needs nothing but itself."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from paired_index_assets.builds.metadata import Metadata
from paired_index_assets.files.storage import write_bytes
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.serving.pictures import Pictures, data_uri

SHOWN = ("caption", "text", "url", "license", "key")  # columns shown under a picture, in this order
PAGE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"


@dataclass(frozen=True)
class Hit:
    """One result; `row` is its metadata, empty where there is none, `picture` its encoded bytes."""

    rank: int  # from 1
    id: int
    score: float
    row: dict[str, Any] = field(default_factory=dict)
    picture: bytes | None = None

    @property
    def caption(self) -> str:
        return str(self.row.get("caption") or self.row.get("text") or self.row.get("TEXT") or "")


@dataclass(frozen=True)
class Answer:
    """The results of one query, best first; places where nothing was found (id -1) are left out."""

    query: str
    hits: list[Hit]


def answers(
    queries: Sequence[str],
    scores: Float32,
    ids: Int64,
    *,
    metadata: Metadata | None = None,
    pictures: Pictures | None = None,
    columns: Sequence[str] | None = None,
) -> list[Answer]:
    """Join `scores` and `ids` (nq, k) of `ShardedIndex.search` with metadata and pictures; each id is looked up once."""
    unique = np.unique(ids[ids >= 0]).tolist()
    rows = dict(zip(unique, metadata.rows(unique, columns) if metadata is not None else [None] * len(unique), strict=True))
    shown = dict(zip(unique, pictures.read(unique) if pictures is not None else [None] * len(unique), strict=True))

    def hits(query: int) -> Iterator[Hit]:
        for rank, (score, row_id) in enumerate(zip(scores[query].tolist(), ids[query].tolist(), strict=True), start=1):
            if row_id >= 0:
                yield Hit(rank, row_id, score, rows[row_id] or {}, shown[row_id])

    return [Answer(query, list(hits(number))) for number, query in enumerate(queries)]


def table_rows(answer: Answer) -> list[tuple[int, float, int, str]]:
    """(rank, score, id, caption) of each hit."""
    return [(hit.rank, hit.score, hit.id, hit.caption) for hit in answer.hits]


def as_json(found: Sequence[Answer]) -> str:
    """A list of ``{"query", "hits": [{"rank", "id", "score", ...metadata}]}``; dates and the like as text."""
    content = [
        {"query": answer.query, "hits": [{**hit.row, "rank": hit.rank, "id": hit.id, "score": hit.score} for hit in answer.hits]}
        for answer in found
    ]
    return json.dumps(jsonable(content), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def write_json(target: Path, found: Sequence[Answer]) -> None:
    write_bytes(target, as_json(found).encode())


def write_html(target: Path, found: Sequence[Answer], title: str = "Search results") -> None:
    write_bytes(target, as_html(found, title).encode())


def as_html(found: Sequence[Answer], title: str = "Search results") -> str:
    """A page with the pictures inside. Every text is escaped, no script runs, nothing is loaded from elsewhere."""
    sections = "".join(
        f"<section><h2>{html.escape(answer.query)}</h2><ol>{''.join(map(_card, answer.hits)) or '<p>Nothing found.</p>'}</ol></section>"
        for answer in found
    )
    return _PAGE.format(policy=html.escape(PAGE_POLICY), title=html.escape(title), sections=sections)


def jsonable(value: Any) -> Any:
    """Numbers, texts, lists and objects as they are (NaN and infinity as null), bytes as null, anything else as text."""
    if isinstance(value, dict):
        return {str(name): jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, bytes):
        return None
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _card(hit: Hit) -> str:
    uri = data_uri(hit.picture)
    picture = f'<img src="{uri}" alt="{html.escape(hit.caption)}" loading="lazy">' if uri else '<div class="none">no picture</div>'
    facts = "".join(f"<p>{_fact(name, hit.row[name])}</p>" for name in SHOWN if hit.row.get(name) not in (None, ""))
    return f'<li>{picture}<p class="score">{hit.score:.4f} <span>#{hit.rank} · id {hit.id}</span></p>{facts}</li>'


def _fact(name: str, value: Any) -> str:
    text = html.escape(str(value))
    if name == "url" and _is_web(str(value)):
        return f'<a href="{text}" rel="noreferrer noopener nofollow">{text}</a>'
    return text


def _is_web(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https")
    except ValueError:
        return False


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="referrer" content="no-referrer"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif }}
body {{ max-width: 76rem; margin: 2rem auto; padding: 0 1rem }}
ol {{ list-style: none; padding: 0; display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)) }}
li {{ border: 1px solid color-mix(in srgb, currentColor 18%, transparent); border-radius: .6rem; overflow: hidden }}
img, .none {{ width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff }}
.none {{ display: grid; place-items: center; color: #777 }}
p {{ margin: .3rem .7rem .5rem; overflow-wrap: anywhere }}
.score {{ font-weight: 600; font-variant-numeric: tabular-nums }} .score span {{ font-weight: 400; opacity: .65; font-size: .85em }}
</style></head><body><h1>{title}</h1>{sections}</body></html>
"""
