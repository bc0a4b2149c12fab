"""Learn from captions which lists hold their images (learning to rank clusters, Vecchiato et al. 2404.11731).

A softmax regression from caption to lists, P(list | q) = softmax(W q + b), is fitted to the lists of each caption's best images. It
starts as the centroids (W = temperature x centroids, b = log size), and a Gaussian prior holds every row of W there: a row with many
labels moves far, a tail list with few stays near its start. Adam, seeded minibatches, full softmax over all lists (a sampled softmax
is not done), the epoch with the best coverage of validation captions is kept.

Lists are probed by P(list | q) / size, the order that finds most for the vectors scanned: log size is taken off the bias. And what is
left of the bias is folded into W, along the direction v whose inner product with captions is nearest to 1 (captions lie in a cone; where
they do not, v is short and so is what is folded). What comes out is (nlist, d) like the centroids, in their unit, and any faiss that has
it as its coarse quantizer probes by it. Groups of lists, in a quantizer of two levels, are lists too: the same is learned for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paired_index_assets.errors import BadInput
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64, usable_rows

BATCH = 1024
LOGITS = 1 << 24  # float32 logits held at a time: a batch is summed over as many parts as that takes
EPOCHS = 8
PATIENCE = 2  # epochs without a better coverage before it stops
LEARNING_RATE = 0.05  # falls to 0 in a straight line; .05 and .15 end alike on icons, .05 starts calmer
RIDGE = 1e-6  # of the mean variance, so that few captions give a direction too
PRIOR = 1e-6  # precision of the prior on W, a caption: 1e-5 loses .004 of coverage on icons, 1e-7 gains nothing
TEMPERATURES = (5.0, 10.0, 20.0, 40.0, 80.0)  # tried for the start, on the labels themselves
HELD_OUT = 20  # without validation captions every twentieth serves
SHARE, LISTS = 0.01, 8  # coverage is judged at this share of the vectors scanned, or at as many average lists if that is more
FEWEST_CAPTIONS = 200


@dataclass(frozen=True)
class Lesson:
    """Captions (m, d) float16/32 with the rows (m, k) of their best images, best first; ten are what recall@10 asks for."""

    captions: Float32
    top_images: Int64


class RoutingWarning(UserWarning):
    """Training went on with less than was asked for; the message says with what."""


@dataclass(frozen=True)
class Labels:
    """Unit captions (m, d) and the lists (m, k) of their best images."""

    captions: Tensor
    lists: Tensor

    def __len__(self) -> int:
        return len(self.captions)


def train_routing(
    centroids: Float32,
    lists_of_images: Int64,
    lesson: Lesson,
    *,
    judges: Lesson | None = None,
    seed: int = 1234,
    epochs: int = EPOCHS,
    device: str | None = None,
    progress: Progress = silent,
) -> Float32:
    """A routing table (nlist, d) float32 for lists that stay as they are: a query probes the lists of the largest ``table @ query``.

    centroids (nlist, d) assigned the images; lists_of_images (n,) is the list of each, -1 for none. `judges` choose the epoch; without them
    every twentieth caption of the lesson does. Captions are made unit vectors; rows that are zero or not finite, or whose images are in no
    list, are left out with a RoutingWarning. With fewer than FEWEST_CAPTIONS, or when no epoch covers more than the centroids do, the
    centroids are returned.

    Reproducible on one device and number of threads. Cost: 6 m nlist d operations an epoch, (7 nlist d + 2 LOGITS) float32 of memory.
    Raises BadInput when shapes do not belong together.
    """
    for known in (lesson, judges):
        if known is not None:
            _check(centroids, lists_of_images, known.captions, known.top_images)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    nlist = len(centroids)
    sizes = np.bincount(lists_of_images[lists_of_images >= 0], minlength=nlist).astype(np.int64)
    labels = _labels(lesson, lists_of_images, where)
    if judges is not None:
        judged = _labels(judges, lists_of_images, where)
    else:
        aside = torch.arange(len(labels), device=where) % HELD_OUT == 0
        judged = Labels(labels.captions[aside], labels.lists[aside])
        labels = Labels(labels.captions[~aside], labels.lists[~aside])
    log_sizes = torch.log(torch.from_numpy(np.maximum(sizes, 1)).to(where, torch.float32))
    start = torch.from_numpy(np.array(centroids, np.float32)).to(where)
    probe_sizes = torch.from_numpy(sizes).to(where)

    def coverage(table: Tensor) -> float:
        return coverage_of(table, judged, probe_sizes) if len(judged) else 0.0

    if len(labels) < FEWEST_CAPTIONS:
        message = f"{len(labels)} captions to learn routing from, fewer than {FEWEST_CAPTIONS}: the centroids route"
        warnings.warn(message, RoutingWarning, stacklevel=2)
        return _array(start)
    temperature = min(TEMPERATURES, key=lambda t: _loss(t * start, log_sizes, labels, slice(0, 4 * BATCH)))
    one = _nearest_to_one(labels.captions)
    best, kept = coverage(start), start
    weights, bias = (temperature * start).requires_grad_(), log_sizes.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights, bias], lr=LEARNING_RATE)
    steps, worse, last = epochs * -(-len(labels) // BATCH), 0, best
    for epoch, order in enumerate(_orders(len(labels), epochs, seed)):
        for number, first in enumerate(range(0, len(labels), BATCH)):
            done = epoch * (steps // epochs) + number
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - done / steps)
            _accumulate(weights, bias, start, temperature, labels, order[first : first + BATCH].to(where))
            optimizer.step()
            if done % 16 == 0:
                progress("routing", done, steps, coverage=round(last, 4))
        table = torch.addr(weights.detach(), bias.detach() - log_sizes, one).div_(temperature)
        last = coverage(table)
        if last > best:
            best, worse, kept = last, 0, table
        else:
            worse += 1
        if worse > PATIENCE:
            break
    progress("routing", steps, steps, coverage=round(best, 4))
    return _array(kept)


def coverage_of(table: Tensor, judges: Labels, sizes: Tensor) -> float:
    """The share of the judges' images in the lists probed before the budget of vectors would be passed; at least one list is probed."""
    budget = max(SHARE, LISTS / len(table)) * float(sizes.sum())
    found = 0.0
    rows = max(1, LOGITS // len(table) // 4)
    for first in range(0, len(judges), rows):
        scores = judges.captions[first : first + rows] @ table.T
        order = scores.argsort(dim=1, descending=True, stable=True)
        within = sizes[order].cumsum(1) <= budget
        within[:, 0] = True
        probed = torch.zeros_like(within).scatter_(1, order, within)
        found += float(probed.gather(1, judges.lists[first : first + rows]).float().mean(1).sum())
    return found / len(judges)


def _accumulate(weights: Tensor, bias: Tensor, start: Tensor, temperature: float, labels: Labels, batch: Tensor) -> None:
    """Gradients of the mean loss of a batch, and of the prior, in parts that hold LOGITS logits."""
    weights.grad = torch.sub(weights.detach(), start, alpha=temperature).mul_(PRIOR)
    bias.grad = torch.zeros_like(bias)
    rows = max(1, LOGITS // len(weights))
    for part in torch.split(batch, rows):
        logits = torch.addmm(bias, labels.captions[part], weights.T)
        losses = torch.logsumexp(logits, 1) - logits.gather(1, labels.lists[part]).mean(1)
        (losses.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]


def _loss(weights: Tensor, bias: Tensor, labels: Labels, part: slice) -> float:
    total, rows = 0.0, max(1, LOGITS // len(weights))
    captions, lists = labels.captions[part], labels.lists[part]
    for few, theirs in zip(torch.split(captions, rows), torch.split(lists, rows), strict=True):
        logits = torch.addmm(bias, few, weights.T)
        total += float((torch.logsumexp(logits, 1) - logits.gather(1, theirs).mean(1)).sum())
    return total / len(captions)


def _orders(rows: int, epochs: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield torch.randperm(rows, generator=generator)


def _labels(lesson: Lesson, lists_of_images: Int64, where: torch.device) -> Labels:
    captions = np.asarray(lesson.captions, dtype=np.float32)
    lists = lists_of_images[lesson.top_images]
    usable = usable_rows(captions) & (lists >= 0).all(axis=1)
    if not usable.all():
        message = f"{int((~usable).sum())} of {len(captions)} captions are zero, not finite, or ask for images in no list: left out"
        warnings.warn(message, RoutingWarning, stacklevel=3)
        captions, lists = captions[usable], lists[usable]
    captions = captions / np.linalg.norm(captions, axis=1, keepdims=True)
    return Labels(torch.from_numpy(captions).to(where), torch.from_numpy(lists).to(where))


def _nearest_to_one(captions: Tensor) -> Tensor:
    """The direction v (d,) of least mean squared ``captions @ v - 1``."""
    rows = captions.double()
    moments = rows.T @ rows / len(rows)
    moments.diagonal().add_(RIDGE * moments.trace() / len(moments))
    solved: Tensor = torch.linalg.solve(moments, rows.mean(0))
    return solved.float()


def _array(table: Tensor) -> Float32:
    return table.cpu().numpy().copy()


def _check(centroids: Float32, lists_of_images: Int64, captions: Float32, top_images: Int64) -> None:
    if centroids.ndim != 2 or captions.ndim != 2 or captions.shape[1] != centroids.shape[1]:
        raise BadInput(f"routing: captions {captions.shape} and centroids {centroids.shape}; expected the same dimensions")
    if top_images.ndim != 2 or len(top_images) != len(captions) or not top_images.shape[1]:
        raise BadInput(f"routing: best images {top_images.shape} of {len(captions)} captions; expected (captions, k)")
    if lists_of_images.max(initial=-1) >= len(centroids):
        raise BadInput(f"routing: an image in list {lists_of_images.max()} of {len(centroids)}; expected the lists these centroids made")
    if top_images.size and not 0 <= top_images.min() <= top_images.max() < len(lists_of_images):
        found = f"{top_images.min()} to {top_images.max()}"
        raise BadInput(f"routing: best images from row {found} of {len(lists_of_images)}; expected rows of the images in lists")
