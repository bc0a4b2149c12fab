"""Throughput of `embed_images` and `embed_captions` against a plain open_clip loop over the same samples, in one process.

    python benchmarks/embedding.py [--rows 4000] [--rounds 3] [--workers 0 1 2] [--size 32] [--model ... --pretrained ...]

The plain loop is what anybody writes first: open, preprocess, stack, encode, by batches of the same size; the results stay in memory.
The project also reads its source, writes parts, metadata and the set, and may not be slower for it. Rounds alternate, so that a busy
machine hits both, and the CPU seconds of this process (workers not counted) stand beside the wall clock. `--size` enlarges the pictures
to JPEGs of that many pixels, as img2dataset makes them. On a GPU, "the model alone" is the rate to compare with.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from paired_index_assets.embeddings.encoders import load_encoder
from paired_index_assets.embeddings.openclip import OpenClipEncoder, import_open_clip
from paired_index_assets.embeddings.run import embed_captions, embed_images
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.open import open_source
from paired_index_assets.sample import sample_model, sample_pairs


def prepare(folder: Path, rows: int, size: int) -> Path:
    table = pq.read_table(sample_pairs(), columns=["png", "caption"]).slice(0, rows)
    pictures = [enlarged(content, size) for content in table["png"].to_pylist()] if size != 32 else table["png"]
    path = folder / "pairs.parquet"
    pq.write_table(pa.table({"image": pictures, "caption": table["caption"]}), path, row_group_size=1000)
    return path


def enlarged(content: bytes, size: int) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall clock and CPU of this process."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--model", default=sample_model())
    parser.add_argument("--pretrained", default=None)
    options = parser.parse_args()
    encoder = load_encoder(options.model, options.pretrained)
    assert isinstance(encoder, OpenClipEncoder)
    clip = import_open_clip()
    model, _, preprocess = clip.create_model_and_transforms(
        options.model, options.pretrained, device=encoder.device, force_quick_gelu=encoder.quick_gelu
    )
    model.eval()
    tokenizer = clip.get_tokenizer(options.model)

    with tempfile.TemporaryDirectory() as scratch:
        path = prepare(Path(scratch), options.rows, options.size)

        def batches(column: str) -> list[list[object]]:
            values = pq.read_table(path, columns=[column])[column].to_pylist()
            return [values[a : a + options.batch] for a in range(0, len(values), options.batch)]

        def plain_images() -> None:
            with torch.inference_mode(), encoder.autocast():
                for batch in batches("image"):
                    tensor = torch.stack([preprocess(Image.open(io.BytesIO(content))) for content in batch])  # type: ignore[arg-type]
                    model.encode_image(tensor.to(encoder.device), normalize=True).half().cpu()

        def plain_captions() -> None:
            with torch.inference_mode(), encoder.autocast():
                for batch in batches("caption"):
                    model.encode_text(tokenizer(batch).to(encoder.device), normalize=True).half().cpu()

        def bare_images() -> None:
            tensor = torch.zeros(options.batch, 3, *encoder.image_size, device=encoder.device)
            with torch.inference_mode(), encoder.autocast():
                for _ in range(0, options.rows, options.batch):
                    model.encode_image(tensor, normalize=True).half().cpu()

        def ours_images(workers: int) -> None:
            with tempfile.TemporaryDirectory(dir=scratch) as root:
                embed_images(open_source(str(path), "images"), encoder, BuildRoot.at(root), workers=workers, batch_size=options.batch)

        def ours_captions() -> None:
            with tempfile.TemporaryDirectory(dir=scratch) as root:
                embed_captions(open_source(str(path), "captions"), encoder, BuildRoot.at(root), batch_size=options.batch)

        contenders: dict[str, Callable[[], object]] = {
            "images, plain loop": plain_images,
            **{f"images, embed_images, {w} worker(s)": partial(ours_images, w) for w in options.workers},
            "images, the model alone": bare_images,
            "captions, plain loop": plain_captions,
            "captions, embed_captions": ours_captions,
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for round_number in range(options.rounds + 1):
            for name, work in contenders.items():
                took = seconds(work)
                if round_number:  # the first round warms caches and the fork server
                    times[name].append(took)
    print(f"{options.rows} pairs, {options.size} px, batch {options.batch}, {encoder.device}, {torch.get_num_threads()} threads")
    print("| what | ratio to the plain loop | rows/s (median) | CPU s (median) |\n|---|---|---|---|")
    medians = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in times.items()}
    for name, (wall, cpu) in medians.items():
        against, _ = medians[f"{name.split(',')[0]}, plain loop"]
        print(f"| {name} | {against / wall:.2f} | {options.rows / wall:,.0f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
