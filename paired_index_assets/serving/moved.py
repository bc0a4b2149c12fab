"""Pictures that lie elsewhere than when they were embedded: theirs are the rows if a sample of them, embedded again, gives these rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from paired_index_assets.embeddings.decoding import prepare_image
from paired_index_assets.embeddings.encoders import Encoder
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.readers.sample import HeldImage

SAMPLE = 32  # pictures: a second or a few for a large model
SAME_COSINE = 0.99  # float16 on another device is .999; another picture, also a like one, is less


def are_the_embedded(images: EmbeddingSet, read: Callable[[Sequence[int]], list[bytes | None]], encoder: Encoder) -> bool:
    """Whether `read` gives, by row, the pictures that the set was embedded from: judged by a seeded sample of those that have a vector."""
    sampled = np.unique(np.random.default_rng(0).integers(len(images), size=SAMPLE))
    vectors = np.asarray(images[sampled], np.float32)
    usable = np.linalg.norm(vectors, axis=1) > 0.5  # NaN is not; a row without a picture is zeros
    contents = read(sampled[usable].tolist())
    prepared = [prepare_image(encoder, HeldImage(content))[0] for content in contents if content is not None]
    good = [pixels for pixels in prepared if pixels is not None]
    if not contents or len(good) < len(contents):
        return False
    cosines = (encoder.encode_images(np.stack(good)) * vectors[usable]).sum(axis=1)
    return bool(cosines.min() >= SAME_COSINE)
