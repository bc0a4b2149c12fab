"""A made index of the kind LAION published (`laion2B-en-imagePQ128`: IVF, PQ of 128 bytes, global ids; without its OPQ), for files that never land.

It holds the rows of the missing files and of as many others, so that whose row is whose has to be found by id. Small and quickly trained:
what is rehearsed is the lossy rebuilding, not LAION's recall.
"""

from __future__ import annotations

import faiss
import numpy as np

from laion_rehearsal.plan import Plan

LISTS, BYTES, FILES = 16, 128, 3
TRAINED_ROWS = 4_096


def write_published(plan: Plan) -> int:
    """Write knn.index00 .. into `plan.published`; returns the rows in it."""
    plan.published.mkdir(parents=True, exist_ok=True)
    catalog = plan.catalog
    asked = sorted({number for missing in plan.mischief.missing for number in (missing, max(0, missing - 1))})
    rows = [plan.geometry.images(number, catalog.all_files[number].rows).astype(np.float32) for number in asked]
    ids = [np.arange(catalog.all_files[n].start_row, catalog.all_files[n].stop_row, dtype=np.int64) for n in asked]
    if not rows:
        return 0
    vectors, numbers = np.concatenate(rows), np.concatenate(ids)
    others = [plan.geometry.images(file.file_id, file.rows).astype(np.float32) for file in plan.sampled()[:8]]
    training = np.concatenate([vectors, *others])[:TRAINED_ROWS]
    bits = 8 if len(training) >= 4 * 256 else 4
    index = faiss.index_factory(plan.geometry.d, f"IVF{LISTS},PQ{BYTES}x{bits}", faiss.METRIC_INNER_PRODUCT)
    ivf = faiss.downcast_index(index)
    ivf.pq.cp.niter = ivf.cp.niter = 4
    ivf.pq.cp.min_points_per_centroid = ivf.cp.min_points_per_centroid = 1
    ivf.do_polysemous_training = False  # orders codes for a search that nobody makes here, in minutes
    index.train(training)
    for number, (mine, theirs) in enumerate(zip(np.array_split(vectors, FILES), np.array_split(numbers, FILES), strict=True)):
        index.reset()
        index.add_with_ids(mine, theirs)
        faiss.write_index(index, str(plan.published / f"knn.index{number:02d}"))
    return len(vectors)
