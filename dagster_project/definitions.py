"""Code location `paired_index`: what `dagster dev`, `dg` and workspace.yaml load. What is in it is in paired_index_assets/assets/."""

import dagster as dg

from paired_index_assets.assets.code_location import assemble
from paired_index_assets.assets.resources import ProgressLog
from paired_index_assets.settings import load_settings


@dg.definitions
def defs() -> dg.Definitions:
    return assemble(load_settings(), ProgressLog())
