"""Which lists to look in: a table learned from captions, beside the centroids that assign images."""
