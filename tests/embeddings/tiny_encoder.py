"""An encoder small enough to run a thousand times: a picture is its 4 x 4 thumbnail, a caption its digest."""

import hashlib
import os
import signal

import numpy as np


class TinyEncoder:
    identity = "tiny/1"
    dimensions = 48

    def encode_texts(self, texts):
        rows = [np.frombuffer((hashlib.sha256(t.encode()).digest() * 2)[:48], np.uint8) for t in texts]
        return _unit(np.stack(rows))

    def prepare_image(self, image):
        return np.asarray(image.convert("RGB").resize((4, 4)))

    def encode_images(self, images):
        return _unit(images.reshape(len(images), 48))


class DeadlyEncoder(TinyEncoder):
    """Dies on a picture of 13 x 13, as a decoder with a bug does."""

    identity = "deadly/1"

    def prepare_image(self, image):
        if image.size == (13, 13):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare_image(image)


def _unit(rows):
    rows = rows.astype(np.float32) + 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def not_an_encoder():
    return object()
