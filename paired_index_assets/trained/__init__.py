"""The trained index: what every shard of a build shares, and how one is chosen."""
