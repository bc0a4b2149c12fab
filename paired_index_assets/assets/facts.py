"""What a person looks at in the UI: counts, bytes, seconds, rates, pictures and tables as Dagster metadata."""

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from upath import UPath

from paired_index_assets.errors import PairedIndexError, Transient, of_the_system
from paired_index_assets.extras import missing_extra


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start


def rows_and_rate(rows: int, seconds: float) -> dict[str, Any]:
    return {"dagster/row_count": rows, "seconds": round(seconds, 2), "rows_per_second": round(rows / max(seconds, 1e-9), 1)}


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    lines = [" | ".join(columns), " | ".join("---" for _ in columns), *(" | ".join(str(cell) for cell in row) for row in rows)]
    return dg.MetadataValue.md("\n".join(f"| {line} |" for line in lines))


def path(where: UPath | Path) -> dg.PathMetadataValue:
    return dg.MetadataValue.path(str(where))


def column_schema(columns: Mapping[str, tuple[str, str]]) -> dg.TableSchema:
    """`columns`: name -> (type, description)."""
    return dg.TableSchema([dg.TableColumn(name, kind, description) for name, (kind, description) in columns.items()])


@contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Around the body of an asset, op or check: an error of this project fails it with its one line, and no stack of ours.

    What is `Transient` is tried again where the asset has a retry policy; a mistake or damage is not: it will not get better by itself.
    """
    try:
        yield
    except PairedIndexError as error:
        raise dg.Failure(description=str(error), allow_retries=isinstance(error, Transient)) from None
    except ImportError as error:
        if (missing := missing_extra(error)) is None:
            raise
        raise dg.Failure(description=str(missing), allow_retries=False) from None
    except OSError as error:
        if (named := of_the_system(error)) is None:
            raise
        raise dg.Failure(description=str(named), allow_retries=isinstance(named, Transient)) from None
