"""`paired-index serve`: a search page, and clip-retrieval's knn-service for the clients people have."""

import re
from typing import Annotated, Optional

import typer

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import say
from paired_index_assets.errors import BadInput
from paired_index_assets.settings import Settings


@takes_settings(also=("nprobe", "model", "pretrained", "device", "images", "caption_texts"))
def serve(
    settings: Settings,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 1234,
    partial: Annotated[bool, typer.Option("--partial", help="Serve the shards that are there.")] = False,
    cors: Annotated[
        Optional[list[str]],
        typer.Option("--cors", help="Origin whose pages may ask this server, `https://HOST`; may be given several times."),
    ] = None,
    without_model: Annotated[bool, typer.Option("--without-model", help="Answer vectors only; load no model.")] = False,
) -> None:
    """Serve a build over HTTP; a rebuild is picked up whole, without a restart."""
    from paired_index_assets.embeddings.encoders import load_encoder
    from paired_index_assets.serving import server
    from paired_index_assets.serving.service import SearchService

    for origin in cors or []:
        if not re.fullmatch(r"\*|https?://[^/\s]+", origin):
            raise BadInput(f"--cors {origin}: expected an origin, `https://HOST` or `http://HOST:PORT`, without a path")
    encoder = None if without_model else load_encoder(settings.model, settings.pretrained, settings.device)
    service = SearchService.of_build(
        settings.build_root, encoder, partial=partial, texts=settings.caption_texts, images=settings.images, nprobe=settings.nprobe
    )
    say(f"Search page: http://{host}:{port}/   knn-service: http://{host}:{port}/knn-service   (Ctrl-C stops it)")
    names = server.OWN_NAMES if host in server.OWN_NAMES else ("*",)
    app = server.make_app(service, allowed_hosts=names, cors=cors or ())
    server.serve(app, service.limits, host, port)
