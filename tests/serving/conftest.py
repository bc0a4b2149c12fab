import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))

from search_builds import finished, fresh, make_build, searchable_pairs

__all__ = ["finished", "fresh", "make_build", "searchable_pairs"]
