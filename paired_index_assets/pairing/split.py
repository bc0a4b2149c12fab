"""Which captions train, which choose, which judge: a split that leaks neither a caption nor a picture.

Rows are pairs: caption i belongs to image i. Rows with equal caption text, or with a byte-equal image embedding, are connected; a connected
component is a *concept*. A concept lies wholly on one side, and an evaluation side holds one caption of each of its concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.tables import digest_of_arrays, read_arrays, write_arrays
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Bool, Int64, Rows, usable_rows

MAX_EVALUATION_SHARE = 0.1  # of the concepts, for each of the two evaluation sides: training keeps at least 80 %
MAX_CONCEPT_SHARE = 0.01  # a concept holding more of the rows than this trains: judged, it would take its rows from training for one query
FREE_CONCEPT_ROWS = 10  # ... but in a small set a concept of ten rows may be judged
MIN_CONCEPTS = 10  # below this a side of a tenth is empty
BLOCK_BYTES = 64 << 20
_FORMAT = 1
CURE = "materialise caption_image_pairs again, which writes a new one"

UInt64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Split:
    """Row ids of each side, ascending. Rows that repeat an evaluated concept, and rows not valid, are on no side."""

    train: Int64
    validation: Int64
    test: Int64
    concepts: int
    """Concepts found among the valid rows."""

    @property
    def content(self) -> str:
        """Digest of who is on which side."""
        return digest_of_arrays({"train": self.train, "validation": self.validation, "test": self.test})

    def save(self, path: UPath | Path, made_from: str = "") -> None:
        """`made_from` names the inputs: `kept` finds the split by it."""
        counts = {"format": np.array(_FORMAT, np.int64), "concepts": np.array(self.concepts, np.int64)}
        sides = {"train": self.train, "validation": self.validation, "test": self.test}
        write_arrays(path, counts | sides | {"made_from": np.array(made_from)})

    @classmethod
    def kept(cls, path: UPath | Path, made_from: str) -> Split | None:
        """The split that was saved as made from this; None where there is none, another, or a damaged one: it is made again."""
        try:
            found = str(read_arrays(path, CURE).get("made_from", ""))
            return cls.load(path) if found == made_from else None
        except (FileNotFoundError, MissingInput, DamagedArtifact):
            return None

    @classmethod
    def load(cls, path: UPath | Path) -> Split:
        """Raises MissingInput if there is no such file, DamagedArtifact if it is not a split of this format."""
        try:
            saved = read_arrays(path, CURE)
            if int(saved["format"]) != _FORMAT:
                raise DamagedArtifact(f"{path}: format {int(saved['format'])}, expected {_FORMAT}; {CURE}")
            return cls(saved["train"], saved["validation"], saved["test"], int(saved["concepts"]))
        except FileNotFoundError as error:
            raise MissingInput(f"{path}: no such file, no pairs yet; materialise caption_image_pairs first") from error
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedArtifact(f"{path}: not a split ({error}); {CURE}") from error


def split_by_concept(
    captions: Rows,
    images: Rows,
    *,
    texts: Sequence[str] | None = None,
    valid: Bool | None = None,
    validation: int,
    test: int,
    seed: int,
    progress: Progress = silent,
) -> Split:
    """Set aside `validation` and `test` captions so that no concept is on two sides.

    captions, images: (n, d) each, aligned; texts: n captions, compared without regard to case and white space (without texts, captions
    are equal if their embeddings are byte-equal); valid: (n,), rows that may be used; rows whose caption or image is zero or not finite
    are never used. Captions are drawn in a seeded random order, so a concept is as likely as it is frequent. A side is never larger than
    a tenth of the concepts, and concepts of more than a hundredth of the rows stay in training.
    Reads each matrix once, in blocks; 18 bytes a row are kept. Deterministic in its arguments.
    Raises BadInput when the lengths differ, a size is negative, or there are fewer than ten concepts.
    """
    n = len(captions)
    if len(images) != n or (texts is not None and len(texts) != n) or (valid is not None and len(valid) != n):
        raise BadInput(
            f"split: {n} captions, {len(images)} images, {'no' if texts is None else len(texts)} texts, "
            f"{'no' if valid is None else len(valid)} validity flags; expected one of each for every pair"
        )
    if validation < 0 or test < 0:
        raise BadInput(f"split: validation={validation}, test={test}; expected 0 or more captions")
    image_keys, usable = _hash_rows(images, "hashing images", progress)
    caption_keys, usable_captions = _hash_rows(captions, "hashing captions", progress)
    usable &= usable_captions
    if valid is not None:
        usable &= valid
    rows = np.flatnonzero(usable)
    wording = _group(caption_keys[rows]) if texts is None else _group_texts(texts, rows)
    concept = _connected(wording, _group(image_keys[rows]))
    concepts = int(concept.max()) + 1 if len(rows) else 0
    if concepts < MIN_CONCEPTS:
        raise BadInput(
            f"split: {len(rows)} usable pairs hold {concepts} different concepts; at least {MIN_CONCEPTS} are needed to keep some aside: "
            "give more pairs"
        )

    order = np.random.default_rng(seed).permutation(len(rows))
    members = np.bincount(concept, minlength=concepts)
    drawable = order[members[concept[order]] <= max(FREE_CONCEPT_ROWS, int(MAX_CONCEPT_SHARE * len(rows)))]
    _, first = np.unique(concept[drawable], return_index=True)
    drawn = drawable[np.sort(first)]  # one row a concept, in random order
    most = int(MAX_EVALUATION_SHARE * concepts)
    validation, test = min(validation, most), min(test, most)
    if len(drawn) < validation + test:  # nearly all rows are in huge concepts: share what there is
        test = len(drawn) * test // (validation + test)
    for_test, for_validation = drawn[:test], drawn[test : test + validation]  # test first: its captions do not move with `validation`
    evaluated = np.zeros(concepts, bool)
    evaluated[concept[for_test]] = True
    evaluated[concept[for_validation]] = True
    return Split(train=rows[~evaluated[concept]], validation=np.sort(rows[for_validation]), test=np.sort(rows[for_test]), concepts=concepts)


def _hash_rows(matrix: Rows, step: str, progress: Progress) -> tuple[UInt64, Bool]:
    """(64-bit hash of the bytes of each row, whether the row is finite and not all zero). Equal rows hash equally; unequal rows collide
    with probability 2^-64 a pair, and a collision only joins two concepts."""
    n, d = len(matrix), int(matrix.shape[1])
    words = -(-d * matrix.dtype.itemsize // 8)
    salts = np.random.default_rng(0x5EED).integers(0, 1 << 64, size=words, dtype=np.uint64)
    hashes, usable = np.empty(n, np.uint64), np.empty(n, np.bool_)
    block = max(1, BLOCK_BYTES // (8 * words))
    for start in range(0, n, block):
        rows = np.ascontiguousarray(matrix[start : start + block])
        stop = start + len(rows)
        usable[start:stop] = usable_rows(rows)
        padded = np.zeros((len(rows), words * 8), np.uint8)
        padded[:, : d * rows.dtype.itemsize] = rows.view(np.uint8).reshape(len(rows), -1)
        hashes[start:stop] = _mix(_mix(padded.view(np.uint64) + salts).sum(1, dtype=np.uint64))
        progress(step, stop, n)
    return hashes, usable


def _mix(words: UInt64) -> UInt64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every output bit depends on every input bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _group(keys: npt.NDArray[Any]) -> Int64:
    return np.unique(keys, return_inverse=True)[1].astype(np.int64, copy=False)


def _group_texts(texts: Sequence[str], rows: Int64) -> Int64:
    folded = pa.array((" ".join(texts[row].casefold().split()) for row in rows), type=pa.large_string(), size=len(rows))
    return np.asarray(folded.dictionary_encode().indices, np.int64)


def _connected(left: Int64, right: Int64) -> Int64:
    """The component of each edge of the bipartite graph left[i] - right[i], numbered from 0 in order of first appearance.

    Each round every node takes the least label of its neighbours and labels are followed to their ends (Shiloach and Vishkin 1982): the
    number of rounds grows with the logarithm of the longest chain.
    """
    if not len(left):
        return np.empty(0, np.int64)
    right = right + left.max() + 1
    label = np.arange(right.max() + 1)
    while True:
        least = np.minimum(label[left], label[right])
        if np.array_equal(least, label[left]) and np.array_equal(least, label[right]):
            break
        for ends in (left, right):
            np.minimum.at(label, label[ends], least)  # hook the whole tree, not only the node
            np.minimum.at(label, ends, least)
        while not np.array_equal(label, followed := label[label]):
            label = followed
    _, first, component = np.unique(label[left], return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    result: Int64 = number[component]
    return result
