"""`paired-index serve`: a search page, and clip-retrieval's knn-service for the clients people have."""

from typing import Annotated

import typer

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import say
from paired_index_assets.settings import Settings


@takes_settings(also=("nprobe", "model", "pretrained", "device", "images", "caption_texts"))
def serve(
    settings: Settings,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 1234,
    partial: Annotated[bool, typer.Option("--partial", help="Serve the shards that are there.")] = False,
    without_model: Annotated[bool, typer.Option("--without-model", help="Answer vectors only; load no model.")] = False,
) -> None:
    """Serve a build over HTTP; a rebuild is picked up whole, without a restart."""
    from paired_index_assets.embeddings.encoders import load_encoder
    from paired_index_assets.serving import server
    from paired_index_assets.serving.service import SearchService

    encoder = None if without_model else load_encoder(settings.model, settings.pretrained, settings.device)
    service = SearchService.of_build(
        settings.build_root, encoder, partial=partial, texts=settings.caption_texts, images=settings.images, nprobe=settings.nprobe
    )
    say(f"Search page: http://{host}:{port}/   knn-service: http://{host}:{port}/knn-service   (Ctrl-C stops it)")
    app = server.make_app(service) if host in server.OWN_NAMES else server.make_app(service, allowed_hosts=["*"])
    server.serve(app, service.limits, host, port)
