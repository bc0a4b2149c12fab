"""The sample that ships with the project: 12,000 licensed icon pairs and the small open_clip model that embeds them.

sample/data/LICENSES.md names set, author and licence of every picture, sample/data/licences/ holds the texts.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from paired_index_assets.errors import MissingInput


def sample_pairs() -> Path:
    """Parquet: row_id, set, name, caption, phrase, license, split ('train' or 'heldout'), png (bytes)."""
    return _data("pairs.parquet")


def sample_model() -> str:
    """The model as open_clip names it: ``local-dir:FOLDER``."""
    return f"local-dir:{_data('model')}"


def _data(name: str) -> Path:
    path = Path(str(files(__name__) / "data" / name))
    if not path.exists():
        raise MissingInput(f"{path}: the sample is not in this installation; install the project from its repository")
    return path
