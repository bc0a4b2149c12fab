"""The one maker of unit vectors that tests use."""

import numpy as np


def unit(rows, dtype=np.float32):
    """`rows` (..., d) divided by their norms in the arithmetic they come in, as `dtype`."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(dtype)


def random_unit(rows, d, seed=0, dtype=np.float32):
    """(rows, d), every direction as likely as any other."""
    return unit(np.random.default_rng(seed).standard_normal((rows, d)).astype(np.float32), dtype)
