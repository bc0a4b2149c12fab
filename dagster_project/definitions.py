"""Code location `paired_index`: what `dagster dev`, `dg` and workspace.yaml load. What is in it is in paired_index_assets/assets/."""

import logging
import multiprocessing
from functools import cache

import dagster as dg

from paired_index_assets.assets.code_location import assemble
from paired_index_assets.assets.instance import not_as_by_ui
from paired_index_assets.assets.resources import ProgressLog
from paired_index_assets.settings import load_settings


@dg.definitions
def defs() -> dg.Definitions:
    settings = load_settings()
    if multiprocessing.parent_process() is None and (missing := not_as_by_ui(settings)) is not None:  # a run has a parent, and says nothing
        _say_once(missing)
    return assemble(settings, ProgressLog())


@cache
def _say_once(missing: str) -> None:
    """A code server asks for the definitions more than once."""
    logging.getLogger("dagster").warning(missing)
