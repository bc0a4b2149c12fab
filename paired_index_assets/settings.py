"""Every setting of a build, once: a flag of `paired-index`, an environment variable, and in Dagster a field of the config of each asset
that uses it.

`nlist` is `--nlist`, `PAIRED_INDEX_NLIST` and `ops: paired_centroids: config: nlist`. What is not given comes from the `settings.json`
that the last build left in its root, then from the defaults below.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact
from paired_index_assets.files.cache import CACHE_FOLDER, Cache
from paired_index_assets.files.listing import several
from paired_index_assets.files.storage import as_path, read_json, require_reachable, write_json
from paired_index_assets.layout import BuildRoot
from paired_index_assets.nlist import FEWEST_LISTS, fine_lists, flat_lists

ENVIRONMENT_PREFIX = "PAIRED_INDEX_"
DEFAULT_ROOT = "data/build"
LAION_2B = "laion2b-en"
LOCAL_DIR = "local-dir:"  # of open_clip: a model in a folder
PATHS = (
    "images",
    "captions",
    "image_features",
    "caption_features",
    "caption_texts",
    "landing",
    "catalog",
    "sources",
    "downloads",
    "rebuild_from",
)
OF_THE_MACHINE = {"root", "cache", "cache_budget_gb"}  # not remembered in the root, which other machines use too
OF_ONE_BUILD = {"allow_lost_takedowns"}  # not remembered either


def _field(default: Any, group: str, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"group": group}, **bounds)


class Settings(BaseSettings):
    """Frozen, validated. Raises pydantic's ValidationError; `load_settings` turns that into one line."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True)

    root: str = _field(DEFAULT_ROOT, "Input and output", "Folder of the build: a path or any fsspec URL.")
    images: str | None = _field(
        None, "Input and output", "Pictures: folder, glob, list of paths, webdataset tars, or Parquet with image bytes."
    )
    captions: str | None = _field(
        None, "Input and output", "Captions: text file, Parquet column, webdataset; left out, they come with the pictures."
    )
    image_features: str | None = _field(
        None, "Input and output", "Image embeddings instead of pictures: .npy, tensor, safetensors or Parquet."
    )
    caption_features: str | None = _field(None, "Input and output", "Caption embeddings, row i belonging to row i of the image embeddings.")
    normalize: Literal["auto", "always", "never"] = _field(
        "auto",
        "Input and output",
        "Features divided by their norms: `auto` where all rows are off, as a model writes them; `always`; or `never`.",
    )
    caption_texts: str | None = _field(
        None,
        "Input and output",
        "The caption of pair i in row i, as `--captions` takes them: shown in results, and equal texts are kept on one side.",
    )
    landing: str | None = _field(
        None, "Input and output", "Folder where the embedding files to index land; left out, the image embeddings themselves are indexed."
    )
    catalog: str | None = _field(None, "Input and output", f"Catalog of the landing files: a file of `catalog scan`, or `{LAION_2B}`.")
    sources: str | None = _field(
        None, "Input and output", "Where to fetch landing files that are not there, in order, separated by commas."
    )
    downloads: str | None = _field(None, "Input and output", "Local folder for fetched files; left out, `downloads` under the root.")
    download_budget_gb: float | None = _field(
        None, "Input and output", "Most disk that fetched files may take; each is deleted once it is encoded.", gt=0
    )
    parallel_downloads: int = _field(2, "Input and output", "Files fetched at once, and requests at a time to one host.", ge=1, le=64)
    rebuild_from: str | None = _field(
        None,
        "Input and output",
        "Folder of published faiss index files with global ids: files that no source has are rebuilt from them, lossily.",
    )

    model: str = _field(
        "ViT-L-14", "Embeddings", "open_clip model, `local-dir:FOLDER`, or `package.module:factory` of an encoder of your own."
    )
    pretrained: str | None = _field("openai", "Embeddings", "open_clip checkpoint name or file.")
    part_rows: int = _field(100_000, "Embeddings", "Rows of one embedding file.", ge=1)
    batch_size: int = _field(256, "Embeddings", "Samples encoded at once.", ge=1)
    workers: int | None = _field(None, "Embeddings", "Processes that decode pictures; left out, as many as help on this machine.", ge=0)
    max_bad_share: float = _field(
        0.05, "Embeddings", "Share of unusable samples above which the embedding assets' checks fail.", ge=0, le=1
    )

    method: Literal["auto", "paired_kmeans", "kmeans"] = _field(
        "auto",
        "Training",
        "Centroids: `auto` builds every method and promotes the best on validation captions; `paired_kmeans` is the paper's.",
    )
    coarse: Literal["auto", "flat", "two_level"] = _field(
        "auto",
        "Training",
        "How a query finds its lists: `flat` compares it with every centroid; `two_level` has four times the lists, in groups, at about the "
        "same cost; `auto`, whichever finds more on validation captions. Only with rounding `query`; the others are flat, as the paper's.",
    )
    nlist: int | None = _field(
        None, "Training", "Inverted lists; left out, the power of two below 4 sqrt(rows), and four times as many in two levels.", ge=1
    )
    niter: int = _field(10, "Training", "k-means iterations.", ge=1, le=1000)
    codec: Literal["QT_4bit", "QT_6bit", "QT_8bit"] = _field("QT_4bit", "Training", "How a vector is stored.")
    rounding: Literal["query", "nearest", "faiss"] = _field("query", "Training", "How a vector is rounded to its code.")
    routing: Literal["auto", "centroids"] = _field(
        "auto",
        "Training",
        "Which lists a query looks in: those whose `centroids` are nearest; or, with `auto`, those that captions taught, where that finds at "
        "least .005 more on validation captions. Only with rounding `query`. Either is the coarse quantizer of the files.",
    )
    transform: Literal["auto", "none"] = _field(
        "auto",
        "Training",
        "Queries through a linear transform, so that the axes that captions care about most get 8 bits of a QT_4bit code, others 4; `auto` "
        "where that finds more on validation captions. `none` keeps the files plain IVFs.",
    )
    bytes_per_vector: int | None = _field(
        None, "Training", "Bytes of a code; left out, those of the codec: half the dimensions. Others need the transform.", ge=1
    )
    validation_captions: int = _field(2_000, "Training", "Captions kept aside to choose by.", ge=1)
    test_captions: int = _field(4_000, "Training", "Captions kept aside to report on.", ge=1)
    seed: int = _field(1234, "Training", "Seed of every random choice.", ge=0)
    allow_regression: bool = _field(False, "Training", "Let an index through that is worse than image k-means on validation captions.")

    shards: int = _field(58, "Shards", "Shard files.", ge=1, le=10_000)
    shards_per_run: int = _field(
        1,
        "Shards",
        "Most neighbouring shards that one run of a backfill builds, one after another; each is finished, and recorded, as in a run of its own. "
        "On one machine more of them save a process a shard.",
        ge=1,
        le=10_000,
    )
    in_place: bool = _field(
        False,
        "Shards",
        "Delete the shards that are served before those of a new trained index are built, where the disk has no room for both.",
    )
    allow_lost_takedowns: bool = _field(
        False, "Shards", "Go on, this once, where rows that were taken down are not found in changed data: they are gone from it."
    )
    packed: bool = _field(
        True, "Shards", "Lay the shards out as one file too, which is searched faster and takes as much disk again (command `pack`)."
    )
    tick_seconds: int = _field(30, "Shards", "Seconds between two looks at the landing folder.", ge=1)
    nprobe: int | None = _field(None, "Search", "Inverted lists a query visits; left out, as many as the build chose.", ge=1)
    parallel_runs: int = _field(
        1,
        "Hardware",
        "Runs that share embedding and pairing, the partitions of `embedding_parts` and `pair_blocks`, where there are several GPUs or machines.",
        ge=1,
        le=1000,
    )
    device: str | None = _field(None, "Hardware", "torch device; left out, the GPU if there is one.")
    cache: str = _field(CACHE_FOLDER, "Hardware", "Local folder for copies of what lies on an object store and has to be mapped.")
    cache_budget_gb: float | None = _field(
        None, "Hardware", "Most disk that these copies may take; the least recently used go first. Left out, all the disk has.", gt=0
    )

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any, info: ValidationInfo) -> Any:
        """``--caption-texts ''`` takes back what the last build was given."""
        return None if value == "" and info.field_name in UNSETTABLE else value

    @field_validator(*PATHS, mode="after")
    @classmethod
    def _wherever_they_are_read(cls, given: str | None) -> str | None:
        """Local paths become absolute, so that a command in another folder means the same files."""
        return given and ",".join(map(absolute, several(given)))

    @field_validator("model", "pretrained", mode="after")
    @classmethod
    def _wherever_it_is_loaded(cls, given: str | None) -> str | None:
        if given and given.startswith(LOCAL_DIR):
            return LOCAL_DIR + absolute(given.removeprefix(LOCAL_DIR))
        return absolute(given) if given and Path(given).expanduser().is_file() else given

    @model_validator(mode="after")
    def _inputs_go_together(self) -> Settings:
        if (self.image_features is None) != (self.caption_features is None):
            given, other = ("image", "caption") if self.image_features else ("caption", "image")
            raise ValueError(f"{given}_features is given without {other}_features: a pair needs both")
        if self.image_features and self.images:
            raise ValueError("images and image_features are both given: choose pictures or features")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _LastBuild(settings_cls)

    @property
    def build_root(self) -> BuildRoot:
        budget = None if self.cache_budget_gb is None else int(self.cache_budget_gb * 1e9)
        return BuildRoot(as_path(self.root), Cache(Path(self.cache).expanduser().absolute(), budget))

    def lists_for(self, rows: int) -> int:
        """`nlist` if given, otherwise `flat_lists`."""
        return self.nlist or flat_lists(rows)

    def fine_lists_for(self, rows: int, training_rows: int) -> int | None:
        """`nlist` if given, otherwise `fine_lists`; None where two levels do not compete."""
        if self.rounding != "query" or self.coarse == "flat":
            return None
        return fine_lists(rows, training_rows) if self.nlist is None else self.nlist if self.nlist >= FEWEST_LISTS else None

    def environment(self) -> dict[str, str]:
        """The same settings as environment variables, for the processes a run starts; what is not set is said to be so, empty."""
        return {f"{ENVIRONMENT_PREFIX}{name.upper()}": "" if value is None else str(value) for name, value in self.model_dump().items()}

    def save(self) -> None:
        write_json(self.build_root.settings, self.model_dump(exclude=OF_THE_MACHINE | OF_ONE_BUILD))


UNSETTABLE = frozenset(name for name, field in Settings.model_fields.items() if type(None) in get_args(field.annotation))


class _LastBuild(PydanticBaseSettingsSource):
    """What the last build in this root was made with."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # abstract in pydantic, and never called on a source with its own __call__

    def __call__(self) -> dict[str, Any]:
        given = set(self.current_state)
        if given >= Settings.model_fields.keys():  # as a run is handed them: nothing is left for the root to say
            return {}
        root = BuildRoot.at(self.current_state.get("root", DEFAULT_ROOT))
        require_reachable(root.root)  # the first look at it: what is wrong with it is reported here
        file = root.settings
        remembered = _remembered(file) if file.exists() else {}
        # another kind of input replaces the remembered one whole
        if given & {"images", "image_features"}:
            remembered = {k: v for k, v in remembered.items() if k not in {"images", "captions", "image_features", "caption_features"}}
        return {name: value for name, value in remembered.items() if name in Settings.model_fields}


def _remembered(file: UPath) -> dict[str, Any]:
    """The settings in a build's settings.json. Raises DamagedArtifact naming the file where one is not what it may be."""
    cure = "delete it, and give `build` its settings again (where it was edited on purpose, take content_sha256 out of it)"
    content: dict[str, Any] = read_json(file, cure=cure)
    for name, field in Settings.model_fields.items():
        if name in content:
            try:
                TypeAdapter(Annotated[field.annotation, field]).validate_python(content[name])  # type: ignore[arg-type]
            except ValidationError as error:
                reason = _say({**error.errors()[0], "loc": (name,)})
                raise DamagedArtifact(f"{file}: {reason}; {cure}") from error
    return content


class _OfThisMachine(Settings):
    """Without what the root remembers, which may not be there to ask."""

    @classmethod
    def settings_customise_sources(cls, *args: Any, **sources: Any) -> tuple[PydanticBaseSettingsSource, ...]:
        return sources["init_settings"], sources["env_settings"]


def load_settings(*, ask_root: bool = True, **given: Any) -> Settings:
    """Settings from `given` (None means not given), the environment, the root's last build (if it is asked) and the defaults.

    Raises BadInput with one line that names every field that is wrong, what was expected and what was found; BadInput or
    SourceUnavailable where the root cannot be asked.
    """
    return validated({name: value for name, value in given.items() if value is not None}, Settings if ask_root else _OfThisMachine)


def validated(values: Mapping[str, Any], kind: type[Settings] = Settings) -> Settings:
    """The settings with these values, where None is one too. Raises BadInput as `load_settings`."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise BadInput("; ".join(_say(problem) for problem in error.errors())) from error


def absolute(path: str) -> str:
    """A local path made absolute, so that it means the same in another working directory; a URL, or the name of a catalog, as it is."""
    place = Path(path).expanduser()
    if path == LAION_2B or "://" in path or (":" in path.split("/")[0] and not place.exists() and not Path(path.split(":")[0]).exists()):
        return path
    return str(place.absolute())


def _say(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "settings"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error":
        return str(message)
    return f"{where}: expected {message}, found {json.dumps(problem['input'], default=str)}"
