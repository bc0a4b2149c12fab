"""The bytes of faiss's scalar codes: how many levels, how they are packed, how they decode.

A level c of dimension i decodes to ``vmin[i] + (c + 0.5) / top * vdiff[i]``, ``top = levels - 1`` (faiss, ScalarQuantizer,
the non-uniform types). The levels of a row are one little-endian stream of bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from paired_index_assets.rows import Float32, UInt8


@dataclass(frozen=True)
class CodeFormat:
    """One of faiss's non-uniform scalar quantizers."""

    name: str
    bits: int

    @property
    def top(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    @property
    def qtype(self) -> int:
        """faiss's number for this format."""
        return int(getattr(faiss.ScalarQuantizer, self.name))

    def code_size(self, d: int) -> int:
        """Bytes a row of `d` dimensions takes."""
        return (d * self.bits + 7) // 8

    def quantizer(self, vmin: Float32, vdiff: Float32) -> faiss.ScalarQuantizer:
        """faiss's own quantizer with these ranges, (d,) each."""
        quantizer = faiss.ScalarQuantizer(len(vmin), self.qtype)
        faiss.copy_array_to_vector(np.concatenate([vmin, vdiff]).astype(np.float32), quantizer.trained)
        return quantizer

    def pack(self, levels: UInt8) -> UInt8:
        """(n, d) levels to (n, code_size) bytes."""
        n, d = levels.shape
        if self.bits == 8:
            return np.ascontiguousarray(levels)
        if self.bits == 4 and d % 2 == 0:  # four times as fast as the stream below
            return levels[:, ::2] | levels[:, 1::2] << np.uint8(4)
        stream = np.unpackbits(levels[:, :, None], axis=2, bitorder="little")[:, :, : self.bits]
        return np.packbits(stream.reshape(n, d * self.bits), axis=1, bitorder="little")


CODECS = {format.name: format for format in (CodeFormat("QT_4bit", 4), CodeFormat("QT_6bit", 6), CodeFormat("QT_8bit", 8))}


def ivf_of(index: faiss.Index) -> Any:
    """The IVF of a faiss index, be it behind a transform or the index itself. It lives as long as `index`, which it keeps alive.

    nprobe, lists and codes are the IVF's: on an IndexPreTransform ``index.nprobe = n`` does nothing.
    """
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    ivf.referenced_objects = [*getattr(ivf, "referenced_objects", []), index]
    return ivf
