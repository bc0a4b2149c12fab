import numpy as np
import pytest
from unit_vectors import unit


def two_clouds(n: int, d: int, seed: int, gap: float = 1.0, clusters: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Unit images and captions (n, d) of the same things, in two clouds `gap` apart, with a falling spectrum."""
    rng = np.random.default_rng(seed)
    spectrum = np.exp(-np.arange(d) / (d / 4))
    mixing = np.linalg.qr(rng.standard_normal((d, d)))[0]
    things = (rng.standard_normal((clusters, d)) * 1.5)[rng.integers(0, clusters, n)] + rng.standard_normal((n, d))
    images = (things * spectrum) @ mixing
    captions = ((things + 0.7 * rng.standard_normal((n, d))) * spectrum) @ mixing
    away = rng.standard_normal((2, d)) * gap / np.sqrt(d) * np.linalg.norm(images, axis=1).mean()
    images, captions = images + away[0], captions + away[1]
    return unit(images), unit(captions)


@pytest.fixture(scope="session")
def clouds() -> tuple[np.ndarray, np.ndarray]:
    return two_clouds(12_000, 72, seed=3)


@pytest.fixture(scope="session")
def make_clouds():
    return two_clouds
