"""`TrainedIndex`: centroids, codec, groups and routing of a build, as one value with a fingerprint and three files.

``X.index``  an empty, trained faiss index that any faiss can read: IndexIVFScalarQuantizer over inner products, no residual, with a
    coarse quantizer of one or two levels; behind a LinearTransform of queries (IndexPreTransform) where the codec has one;
``X.index.npz``  the arrays, among them those faiss knows nothing of (rounding, what assigns vectors to lists);
``X.index.json``  what they are: method, model, evidence, fingerprint, digests of the other two. Written last: without it there is no index.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.codes.codec import TrainedCodec
from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.storage import as_path, atomic_file, digest_of, digest_of_parts, is_local, read_json, write_json
from paired_index_assets.nlist import NPROBE
from paired_index_assets.rows import Float32, Int64, UInt8, usable_rows
from paired_index_assets.trained.coarse import Groups, probe, quantizer_of

if TYPE_CHECKING:
    from paired_index_assets.neighbors.assigning import Assigner

FORMAT = 3
LEFT_OUT = -1  # the list of a row that must not be searchable


@dataclass(frozen=True)
class TrainedIndex:
    """What every shard of a build shares. `centroids` (nlist, d) float32 assign vectors; codes are not residuals.

    Queries are compared with `routing` (nlist, d) where captions taught one, else with the centroids. `groups` make the coarse quantizer
    one of two levels; `nprobe` is what a search takes that does not say. All three are in the files.
    """

    method: str
    nlist: int
    d: int
    centroids: Float32
    codec: TrainedCodec
    model: str | None = None  # identity of the encoder, where somebody named it
    evidence: dict[str, Any] = field(default_factory=dict)  # what training saw, for people; not part of the fingerprint
    groups: Groups | None = None
    nprobe: int = NPROBE
    routing: Float32 | None = None

    def __post_init__(self) -> None:
        if self.centroids.shape != (self.nlist, self.d) or self.codec.d != self.d:
            raise BadInput(f"trained index: centroids {self.centroids.shape}, codec of {self.codec.d}: expected ({self.nlist}, {self.d})")
        if self.groups is not None and self.groups.of_list.shape != (self.nlist,):
            raise BadInput(f"trained index: groups of {len(self.groups.of_list)} lists, expected {self.nlist}; group these lists")
        if self.routing is not None and self.routing.shape != self.centroids.shape:
            raise BadInput(f"trained index: routing {self.routing.shape}, expected {self.centroids.shape}; learn it for these lists")

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a sha256 over names and arrays; two equal ones code and list every vector alike, and probe alike."""
        parts: list[str | bytes] = [str(FORMAT), self.method, self.model or "", self.codec.name, self.codec.rounding, str(self.nprobe)]
        for name, array in sorted(self._arrays().items()):
            parts += [name, str(array.dtype), str(array.shape), np.ascontiguousarray(array).tobytes()]
        return digest_of_parts(*parts)[:16]

    def encode(self, vectors: npt.NDArray[Any], *, device: str | None = None) -> tuple[Int64, UInt8]:
        """List numbers (n,) and codes (n, code_size) of `vectors` (n, d) float16/32; a row that is zero or not finite gets list -1.

        device: of the assignment, which is exact on any; left out, the GPU if there is one. So lists and codes are the same on all.
        """
        import torch  # readers of an index have no need of it

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        vectors = np.asarray(vectors)
        usable = usable_rows(vectors)
        lists = np.full(len(vectors), LEFT_OUT, np.int64)
        codes = np.zeros((len(vectors), self.codec.code_size), np.uint8)
        kept = np.ascontiguousarray(vectors if usable.all() else vectors[usable], dtype=np.float32)
        if len(kept):
            lists[usable] = self._assigner(kept, self.centroids, device=device)
            codes[usable] = self.codec.encode(kept)
        return lists, codes

    @cached_property
    def _assigner(self) -> Assigner:
        from paired_index_assets.neighbors.assigning import Assigner

        return Assigner()

    @property
    def levels(self) -> int:
        """Of the coarse quantizer."""
        return 1 if self.groups is None else 2

    @property
    def learned(self) -> bool:
        """Whether captions taught which lists a query looks in."""
        return self.routing is not None

    @property
    def coarse_dots(self) -> int:
        """Centroids that a query is compared with."""
        return self.nlist if self.groups is None else self.groups.dots

    def probe(self, queries: Float32, nprobe: int, *, widen: bool = True) -> tuple[Float32, Int64]:
        """Scores (nq, nprobe), descending, and lists to look in for `queries` (nq, d); list -1 where there are no more. In all groups of lists
        for a large `nprobe`, as a search; without `widen`, for every list only: so the first lists of many are those of a few."""
        return probe(self._quantizer, self.codec.transform_queries(queries), min(nprobe, self.nlist), widen=widen)

    @cached_property
    def _quantizer(self) -> faiss.Index:
        places = self.codec.places
        compared = self.centroids if self.routing is None else self.routing
        return quantizer_of(places(compared), self.groups, None if self.groups is None else places(self.groups.centroids))

    def empty_index(self) -> faiss.Index:
        """A trained faiss index with no vectors: what shard files are, but for their lists. `trained.coarse.ivf_of` is its IVF.

        Any faiss searches what `add_sa_codes` and `encode` put in the IVF. faiss's own `add` is only for indices without transform and
        groups and routing: it would treat a vector as it treats a query.
        """
        codec = self.codec
        coarse = faiss.clone_index(self._quantizer)
        ivf = faiss.IndexIVFScalarQuantizer(coarse, codec.columns, self.nlist, codec.format.qtype, faiss.METRIC_INNER_PRODUCT, False)
        faiss.copy_array_to_vector(np.concatenate([codec.vmin, codec.vdiff]).astype(np.float32), ivf.sq.trained)
        ivf.is_trained, ivf.nprobe = True, self.nprobe
        return ivf if codec.transform is None else faiss.IndexPreTransform(codec.transform.linear, ivf)

    def save(self, path: str | Path | UPath) -> None:
        """Write the three files beside each other; the JSON, which makes them one artifact, comes last.

        On an object store `path` should name the content (BuildRoot.trained_index), so that nobody reads files of two.
        """
        index, arrays, card = files_of(path)
        digests = {}
        if is_local(card) and not _is_card_of(card, self.fingerprint):
            card.unlink(missing_ok=True)
        with atomic_file(index) as temporary:
            faiss.write_index(self.empty_index(), str(temporary))
            digests[index.name] = digest_of(temporary)
        with atomic_file(arrays) as temporary:
            with temporary.open("wb") as stream:
                np.savez(stream, **self._arrays())  # type: ignore[arg-type]
            digests[arrays.name] = digest_of(temporary)
        content = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "method": self.method,
            "model": self.model,
            "nlist": self.nlist,
            "d": self.d,
            "codec": self.codec.name,
            "rounding": self.codec.rounding,
            "levels": self.levels,
            "axes": self.codec.axes,
            "routing": "learned" if self.learned else "centroids",
            "nprobe": self.nprobe,
            "evidence": self.evidence,
            "sha256": digests,
        }
        write_json(card, content)

    @classmethod
    def load(cls, path: str | Path | UPath) -> TrainedIndex:
        """Read what `save` wrote. Raises MissingInput, or DamagedArtifact if a file is not the one that was saved."""
        index, arrays, card = files_of(path)
        content = read_json(card)
        try:
            if content["format"] != FORMAT:
                raise DamagedArtifact(f"{card}: format {content['format']}, expected {FORMAT}; build with this version again")
            for file in (index, arrays):
                if not file.exists():
                    raise MissingInput(f"{file}: no such file, but {card} names it; build the trained index again")
                if (found := digest_of(file)) != content["sha256"][file.name]:
                    raise DamagedArtifact(f"{file}: sha256 {found}, expected {content['sha256'][file.name]}; delete {card} and build again")
            with arrays.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                parts = {name: stored[name] for name in stored.files}
            trained = cls(
                content["method"],
                content["nlist"],
                content["d"],
                parts["centroids"],
                TrainedCodec.from_arrays(content["codec"], content["rounding"], _under("codec.", parts)),
                content["model"] or None,
                content["evidence"],
                Groups.from_arrays(_under("groups.", parts)) if content["levels"] == 2 else None,
                content["nprobe"],
                parts["routing"] if content.get("routing") == "learned" else None,
            )
        except (KeyError, TypeError) as error:
            raise DamagedArtifact(f"{card}: {type(error).__name__} on {error}; delete it and build the trained index again") from error
        if trained.fingerprint != content["fingerprint"]:
            raise DamagedArtifact(f"{card}: fingerprint {content['fingerprint']}, but its arrays make {trained.fingerprint}; build again")
        return trained

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays = {"centroids": self.centroids} | ({} if self.routing is None else {"routing": self.routing})
        arrays |= {f"codec.{name}": array for name, array in self.codec.arrays().items()}
        return arrays | {f"groups.{name}": array for name, array in (self.groups.arrays() if self.groups else {}).items()}


def files_of(path: str | Path | UPath) -> tuple[UPath, UPath, UPath]:
    """The faiss file, the arrays and the card, which is written last."""
    index = as_path(path)
    return index, index.with_name(index.name + ".npz"), index.with_name(index.name + ".json")


def _is_card_of(card: UPath, fingerprint: str) -> bool:
    try:
        return bool(read_json(card)["fingerprint"] == fingerprint)
    except (MissingInput, DamagedArtifact, KeyError, TypeError):
        return False


def _under(prefix: str, parts: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in parts.items() if name.startswith(prefix)}
