"""Encoders: text -> matrix, images -> matrix. Any object with these five names can stand in for open_clip.

A model of your own is given by a dotted path, ``package.module:factory``; the factory takes no arguments and returns an `Encoder`:

    class MyEncoder:
        identity = "my-model/2"          # goes into every manifest: change it when the vectors change
        dimensions = 512
        def encode_texts(self, texts): ...      # list of n strings -> (n, 512) float32, unit rows
        def prepare_image(self, image): ...     # PIL image -> array, one shape for all; runs in worker processes
        def encode_images(self, images): ...    # (n, ...) the prepared arrays stacked -> (n, 512) float32, unit rows

An encoder on a GPU may also have ``lanes = 2``: so many threads then call it at once, one batch being queued while another is computed.

Captions and images must come from one encoder: their vectors are compared by inner product. An encoder is pickled to reach worker
processes, where only `prepare_image` is called (leave weights out in ``__getstate__``); with ``workers=0`` it need not be picklable.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt
from PIL import Image

from paired_index_assets.errors import BadInput
from paired_index_assets.rows import Float32

DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # "local-dir:..." and "hf-hub:..." have a hyphen


@runtime_checkable
class Encoder(Protocol):
    @property
    def identity(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def encode_texts(self, texts: Sequence[str]) -> Float32: ...

    def prepare_image(self, image: Image.Image) -> npt.NDArray[Any]: ...

    def encode_images(self, images: npt.NDArray[Any]) -> Float32: ...


def load_encoder(model: str = "ViT-L-14", pretrained: str | None = "openai", device: str | None = None) -> Encoder:
    """open_clip's names (``ViT-L-14`` + ``openai``, ``local-dir:FOLDER``, ``hf-hub:ORG/NAME``) or ``package.module:factory``.

    `device` is for open_clip (None: a GPU if there is one). Raises BadInput if the factory cannot be imported or does not return an Encoder;
    open_clip's weights are loaded on first use.
    """
    if not DOTTED.fullmatch(model):
        from paired_index_assets.embeddings.openclip import OpenClipEncoder  # brings torch and open_clip

        return OpenClipEncoder(model, pretrained, device)
    module, _, name = model.partition(":")
    try:
        encoder = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise BadInput(f"encoder {model!r}: expected package.module:factory that can be called without arguments, found {error}") from error
    if not isinstance(encoder, Encoder):
        missing = [n for n in ("identity", "dimensions", "encode_texts", "prepare_image", "encode_images") if not hasattr(encoder, n)]
        raise BadInput(f"encoder {model!r}: expected an Encoder, found {type(encoder).__name__} without {', '.join(missing)}")
    return encoder
