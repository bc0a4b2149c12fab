"""A rehearsal of LAION-2B at a share of its rows: `make laion-rehearsal SHARE=0.001`.

Every vector in it is made, from a stated model of CLIP's geometry (`geometry.py`); none is LAION's. What is LAION's: the catalog of 2,314
files and 58 shards, rows a file (times the share), 768 dimensions, float16, names and folders, and which 16 files are missing.
"""
