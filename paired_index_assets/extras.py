"""What is installed with which extra, and the one line that says so where it is missing."""

from __future__ import annotations

from paired_index_assets.errors import MissingExtra

NAME = "paired-index-assets"
EXTRA_OF = {
    "torch": "build",
    "matplotlib": "build",
    "PIL": "build",
    "safetensors": "build",
    "requests": "build",
    "aiohttp": "build",
    "open_clip": "encode",
    "torchvision": "encode",
    "starlette": "serve",
    "uvicorn": "serve",
    "httptools": "serve",
    "prometheus_client": "serve",
    "duckdb": "serve",
    "dagster": "dagster",
    "dagster_webserver": "dagster",
    "sqlalchemy": "dagster",
    "s3fs": "s3",
    "dagster_postgres": "cluster",
    "dagster_ray": "cluster",
}


def missing_extra(error: BaseException) -> MissingExtra | None:
    """What to install, if `error` is of a module that an extra brings."""
    if not isinstance(error, ImportError):
        return None
    module = (error.name or "").partition(".")[0]
    if not module:  # fsspec says it in words
        module = next((name for name in EXTRA_OF if name in str(error)), "")
    extra = EXTRA_OF.get(module)
    return MissingExtra(f"{module} is not installed; pip install '{NAME}[{extra}]' (or [all])") if extra else None
