"""Segments (one landed file encoded once), shards (segments put into lists), their manifest, and what was taken down."""
