"""`paired-index search`: what the finished index finds."""

from functools import partial as partial_of
from pathlib import Path
from typing import Annotated, Optional

import numpy as np
import typer

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.rows import Float32
from paired_index_assets.settings import Settings

FORMATS = (".npz", ".parquet", ".json", ".html")
STREAMED = (".npz", ".parquet")
PIECE = 65_536  # rows of a file of queries looked at together


@takes_settings(also=("nprobe", "model", "pretrained", "device"))
def search(
    settings: Settings,
    text: Annotated[Optional[list[str]], typer.Option("--text", help="A text query; may be given several times.")] = None,
    image: Annotated[Optional[list[Path]], typer.Option("--image", help="A picture as query; may be given several times.")] = None,
    queries: Annotated[Optional[Path], typer.Option("--queries", help="Query vectors: .npy of shape (queries, dimensions).")] = None,
    k: Annotated[int, typer.Option("-k", help="Results a query.", min=1)] = 10,
    out: Annotated[
        Optional[Path], typer.Option("--out", help="Write .npz (scores float32, ids int64), .parquet, .json or .html instead of a table.")
    ] = None,
    where: Annotated[
        Optional[str], typer.Option("--where", help="Only rows whose metadata meet this: \"NSFW = 'UNLIKELY' AND width >= 512\".")
    ] = None,
    rerank: Annotated[
        int, typer.Option("--rerank", help="Score the best K times this many again by their embeddings, where these are at hand.", min=0)
    ] = 0,
    partial: Annotated[bool, typer.Option("--partial", help="Search the shards that are there, and say which are not.")] = False,
) -> None:
    """Search a build by text, picture or vector."""
    if out is not None and out.suffix not in FORMATS:
        raise BadInput(f"--out {out}: expected a name ending in one of {', '.join(FORMATS)}")
    if sum(given is not None and given != [] for given in (text, image, queries)) != 1:
        raise BadInput("give one kind of query: --text, --image or --queries")
    from paired_index_assets.cli.results import show, stream
    from paired_index_assets.cli.terminal import bars, say
    from paired_index_assets.files.compiling import is_compiled
    from paired_index_assets.search.sharded import ShardedIndex
    from paired_index_assets.serving.beside import filter_of, originals_of

    with ShardedIndex.open(settings.build_root, partial=partial) as index:
        named, vectors = _vectors(settings, index.model, text or [], image or [], queries)
        with bars() as progress:
            only = None if where is None else filter_of(settings, where, progress)
        if only is not None:
            say(f"{only.matching:,} of {index.ntotal:,} rows match")
        originals = originals_of(settings) if rerank else None
        if not is_compiled("search"):
            say("Compiling the search for this processor, once: some 15 s.")
        answer = partial_of(index.search, k=k, nprobe=settings.nprobe, where=only, rerank=rerank, originals=originals)
        if out is not None and out.suffix in STREAMED:
            stream(vectors, k, answer, out, missing=index.missing)
        else:
            show(settings, named, *answer(vectors), out, missing=index.missing)


def _vectors(settings: Settings, model: str | None, text: list[str], image: list[Path], queries: Path | None) -> tuple[list[str], Float32]:
    """Names and (n, d) vectors of the queries."""
    if queries is not None:
        array = _matrix(queries)
        return [f"row {row}" for row in range(len(array))], array
    from paired_index_assets.embeddings.decoding import prepare_image
    from paired_index_assets.embeddings.encoders import load_encoder
    from paired_index_assets.readers.captions import OK
    from paired_index_assets.readers.sample import ImageFile

    if model is None:
        raise BadInput("this index was built from features of an unnamed model: search it with --queries, or build it again with --model")
    encoder = load_encoder(settings.model, settings.pretrained, settings.device)
    if encoder.identity != model:
        raise BadInput(
            f"this index was built with {model}, and --model {settings.model} is {encoder.identity}: their vectors cannot be compared"
        )
    if text:
        if empty := [query for query in text if not query.strip()]:
            raise BadInput(f"--text {empty[0]!r}: expected words, found none")
        return text, encoder.encode_texts(text)
    prepared = [prepare_image(encoder, ImageFile(str(file))) for file in image]
    for file, (_, outcome) in zip(image, prepared, strict=True):
        if outcome != OK:
            raise BadInput(f"--image {file}: expected a picture, found: {outcome}")
    return [file.name for file in image], encoder.encode_images(np.stack([array for array, _ in prepared if array is not None]))


def _matrix(file: Path) -> Float32:
    """(queries, dimensions) of a .npy file; one vector is one query. Raises MissingInput or BadInput, each in one line."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)  # mapped: there may be millions
    except FileNotFoundError as error:
        raise MissingInput(f"--queries {file}: no such file") from error
    except OSError:
        raise
    except Exception as error:  # numpy evaluates a header: ValueError, EOFError, SyntaxError, the zip module's own, ...
        reason = " ".join(str(error).split())[:160]
        raise BadInput(f"--queries {file}: expected a .npy file of numbers, found one that cannot be read ({reason})") from error
    if not isinstance(array, np.ndarray):
        raise BadInput(f"--queries {file}: expected one .npy matrix, found an archive of several arrays; save one with numpy.save")
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise BadInput(f"--queries {file}: expected numbers of shape (queries, dimensions), found shape {array.shape} of {array.dtype}")
    rows = np.atleast_2d(array)
    for first in range(0, len(rows), PIECE):
        if len(zero := np.flatnonzero(~rows[first : first + PIECE].any(axis=1))):
            raise BadInput(f"--queries {file}: row {first + int(zero[0])} is all zeros, which no vector is near to; leave such rows out")
    with np.errstate(over="ignore"):
        return rows if rows.dtype in (np.float16, np.float32) else rows.astype(np.float32)
