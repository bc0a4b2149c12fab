from search_builds import finished, fresh, make_build, searchable_pairs

__all__ = ["finished", "fresh", "make_build", "searchable_pairs"]
