"""`trained/promoted.json`: which trained index the shards are built with, and why. The only module that knows its keys.

Whether shards made with it are what is searched is another matter: promotion changes what is built, not what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from paired_index_assets.errors import DamagedArtifact, MissingInput
from paired_index_assets.files.storage import is_local, read_json, remove_older, write_json
from paired_index_assets.layout import BuildRoot
from paired_index_assets.nlist import NPROBE
from paired_index_assets.trained.artifact import TrainedIndex


@dataclass(frozen=True)
class Standing:
    """One of all that competed: what it found of the validation captions' ten nearest, at the share of vectors at which all were compared."""

    name: str
    coverage: float
    recall: float
    bytes_per_vector: int
    coarse_dots: int
    nprobe: int | None
    imbalance: float


@dataclass(frozen=True)
class Promotion:
    """`index` and `candidates`, those that reports compare, are file names under ``trained/``; `nprobe` is what a search takes that does
    not say (it is in the files too); the gain is recall over the baseline `regression` is judged by. `standings`, at `share` of the
    vectors scanned, are of all that competed."""

    index: str
    fingerprint: str
    nprobe: int = NPROBE
    candidates: Sequence[str] = ()
    name: str = ""
    baseline: str = ""
    gain: float = 0.0
    gain_low: float = 0.0
    gain_high: float = 0.0
    regression: bool = False
    why: str = ""
    share: float = 0.0
    standings: Sequence[Standing] = ()


def promote(build: BuildRoot, chosen: Promotion) -> None:
    """Write `chosen`. On an object store the files of trained indices before the one it replaces go: no reader can be opening them."""
    before = read_promotion(build) if build.promoted.exists() else None
    write_json(build.promoted, asdict(chosen))
    if before is not None and not is_local(build.root):
        remove_older(build.trained.glob("images.*"), than=build.trained / f"{before.index}.json")


def read_promotion(build: BuildRoot) -> Promotion:
    """Raises MissingInput before the first training, DamagedArtifact for a file that is not a promotion."""
    if not build.promoted.exists():
        raise MissingInput(f"{build.promoted}: no such file; no index is trained yet: materialise trained_index first")
    content = read_json(build.promoted, cure="materialise trained_index again")
    try:
        return TypeAdapter(Promotion).validate_python(content)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:3])
        raise DamagedArtifact(f"{build.promoted}: not a promotion ({wrong}); materialise trained_index again") from error


def promoted_index(build: BuildRoot) -> TrainedIndex:
    """The trained index that the shards are to be built with. Raises MissingInput; DamagedArtifact if it is not the one promoted."""
    chosen = read_promotion(build)
    trained = TrainedIndex.load(build.trained / chosen.index)
    if trained.fingerprint != chosen.fingerprint:
        raise DamagedArtifact(
            f"{build.promoted}: promotes {chosen.fingerprint}, but {chosen.index} is {trained.fingerprint}; materialise trained_index again"
        )
    return trained


def candidates_of(build: BuildRoot) -> list[TrainedIndex]:
    """The promoted index, and those that reports compare it with. Raises as `promoted_index`, and DamagedArtifact if none is named."""
    chosen = read_promotion(build)
    if not chosen.candidates:
        raise DamagedArtifact(f"{build.promoted}: names no candidates; materialise trained_index again")
    return [TrainedIndex.load(build.trained / name) for name in chosen.candidates]
