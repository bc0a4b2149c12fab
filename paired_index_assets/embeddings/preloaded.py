"""Imported once by the fork server, so that worker processes start with torch and open_clip in memory."""

from paired_index_assets.embeddings import decoding as decoding
from paired_index_assets.embeddings.openclip import import_open_clip

import_open_clip()
