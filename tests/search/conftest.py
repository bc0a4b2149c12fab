from search_builds import finished, fresh, make_build, searchable_pairs, transformed

__all__ = ["finished", "fresh", "make_build", "searchable_pairs", "transformed"]
