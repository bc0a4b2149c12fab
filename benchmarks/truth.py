"""What exact truth of the test captions costs beside the assignment of the same rows, in the same process.

    python benchmarks/truth.py [--nlist 131072] [--dimensions 768] [--captions 1000] [--blocks 12] [--data FOLDER]

Rows come in blocks of 32,768, as a landed file is encoded: the first of a file finds all its candidates, later ones few. Assignment is
measured on one block (every block costs the same), truth on all of them. Seconds of CPU, so that other work on the machine does not count
as ours. FOLDER holds `image_features.npy` and `caption_features.npy`; otherwise rows are clustered and random. Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from paired_index_assets.neighbors.exact import assign
from paired_index_assets.shards.encode import ENCODE_ROWS
from paired_index_assets.shards.truth import TestCaptions, TruthInTheMaking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nlist", type=int, default=131_072)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--captions", type=int, default=1_000)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    blocks, centroids, captions = measured_on(options)
    assign(blocks[0][:1024], centroids[:2048])  # threads, and the probe of the fastest arithmetic
    started = time.process_time()
    assign(blocks[0], centroids)
    a_block = time.process_time() - started
    truth, seconds = TruthInTheMaking(TestCaptions(captions)), []
    for block in blocks:
        started = time.process_time()
        truth.add(block)
        seconds.append(time.process_time() - started)
    ideal = len(captions) / len(centroids)
    print(f"{len(blocks)} blocks of {len(blocks[0]):,} x {blocks[0].shape[1]}, {len(centroids):,} lists, {len(captions):,} captions\n")
    print("| what | of assignment | CPU s a block |\n|---|---|---|")
    print(f"| assignment | 1 | {a_block:.2f} |")
    print(f"| truth, all blocks of the file | {np.mean(seconds) / a_block:.2%} | {np.mean(seconds):.3f} |")
    print(f"| truth, first block | {seconds[0] / a_block:.2%} | {seconds[0]:.3f} |")
    print(f"| truth, last three | {np.mean(seconds[-3:]) / a_block:.2%} | {np.mean(seconds[-3:]):.3f} |")
    print(f"| captions / lists | {ideal:.2%} | |")


def measured_on(options: argparse.Namespace) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Blocks of rows, centroids and captions, all unit float32."""
    if options.data:
        images = np.load(options.data / "image_features.npy").astype(np.float32)
        captions = np.load(options.data / "caption_features.npy")[: options.captions].astype(np.float32)
        blocks = [images[start : start + ENCODE_ROWS] for start in range(0, len(images) - ENCODE_ROWS + 1, ENCODE_ROWS)]
        return blocks[: options.blocks], images[np.random.default_rng(1).choice(len(images), options.nlist, replace=False)], captions
    rng = np.random.default_rng(1)
    centroids = unit(rng.normal(size=(options.nlist, options.dimensions)).astype(np.float32))

    def near(rows: int, spread: float) -> np.ndarray:
        noise = unit(rng.normal(size=(rows, options.dimensions)).astype(np.float32))
        return unit(centroids[rng.integers(0, options.nlist, rows)] + spread * noise)

    return [near(ENCODE_ROWS, 0.5) for _ in range(options.blocks)], centroids, near(options.captions, 2.0)


def unit(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


if __name__ == "__main__":
    main()
