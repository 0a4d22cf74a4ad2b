"""Pair numbers → tensors: which pairs a step sees, how each side is shown, and what the model reads of it.

A batch is a function of (seed, stage, step) alone, so a run that was killed and resumed sees what an undisturbed one would have seen.
B pairs, R rows of a side, N pictures, L tokens, S pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from moon_ops.encoder import augment
from moon_ops.encoder.model import Encoder
from moon_ops.encoder.pairs import Pairs, Rows
from moon_ops.encoder.permutations import Stream
from moon_ops.encoder.pixels import PixelStore
from moon_ops.encoder.positives import NOBODY, Positives, distinct
from moon_ops.encoder.samples import Firsts, Samples
from moon_ops.encoder.texts import Words
from moon_ops.inputs.contract import Layout
from moon_ops.recipes.encoder import PAIR_TYPES, Training

MASK_BYTES = 128 * 2**20  # of masks that a process keeps, 4 KiB each at 64 px
MEMBERS = 8  # of what belongs together that are paired: a query that led to hundreds is no evidence
SHAKEN, PHOTOGRAPH, STUDIO = 0, 1, 2  # what happens to a picture on its way in


@dataclass(frozen=True)
class Inputs:
    """One side of a batch: ``input_ids``, ``attention_mask`` [R, L], ``pixels`` [N, 3, S, S] in order, ``pictures`` [R] of each row."""

    input_ids: Tensor
    attention_mask: Tensor
    pixels: Tensor
    pictures: tuple[int, ...]  # rows of ``pixels``, so views count

    def __len__(self) -> int:
        return len(self.pictures)

    def part(self, start: int, stop: int) -> Inputs:
        """The rows ``start`` to ``stop``, or what there is of them, without padding that none of them needs."""
        before, inside = sum(self.pictures[:start]), sum(self.pictures[start:stop])
        mask = self.attention_mask[start:stop]
        length = int(mask.sum(1).max()) if len(mask) else 0
        pixels = self.pixels[before : before + inside]
        return Inputs(self.input_ids[start:stop, :length], mask[:, :length], pixels, self.pictures[start:stop])

    def to(self, device: torch.device) -> Inputs:
        """The same on ``device``; from pinned memory without waiting."""
        ids, mask, pixels = (part.to(device, non_blocking=True) for part in (self.input_ids, self.attention_mask, self.pixels))
        return Inputs(ids, mask, pixels, self.pictures)

    def pin_memory(self) -> Inputs:
        """The same in memory that a GPU copies from while it computes."""
        return Inputs(self.input_ids.pin_memory(), self.attention_mask.pin_memory(), self.pixels.pin_memory(), self.pictures)


@dataclass(frozen=True)
class Batch:
    """The sides of B pairs by name, and of each pair the product, as a number to mask with."""

    sides: dict[str, Inputs]
    product: Tensor  # [B], equal where an item is no negative of another
    asker: Tensor  # [B], whom the batches' positives know by that number
    pictured: Tensor  # [B], whether the item has a picture
    negative_product: Tensor  # [K], of the items of the side "negative"
    names: tuple[int, ...]  # item ids, to be named when the loss fails

    def pin_memory(self) -> Batch:
        """The same with its sides as :meth:`Inputs.pin_memory` gives them; the rest is small."""
        return replace(self, sides={name: side.pin_memory() for name, side in self.sides.items()})


@dataclass(frozen=True)
class Shown:
    """One row as it will be read: its tokens, its pictures, and what happens to each of them."""

    tokens: list[int]
    pictures: tuple[str, ...] = ()
    treatment: int = STUDIO


class Reader:
    """Turns rows as shown into what the model reads."""

    def __init__(self, encoder: Encoder, store: PixelStore, training: Training, scenery: Sequence[str]) -> None:
        self.layout: Layout = encoder.layout
        self.store, self.training, self.scenery = store, training, scenery
        self.masks: dict[tuple[str, int], NDArray[np.uint8]] = {}  # those that were used last

    def read(self, rows: Sequence[Shown], generator: torch.Generator, layout: Layout | None = None) -> Inputs:
        """Inputs of ``rows`` in order; another ``layout`` than the encoder's has smaller pictures, and so fewer tokens of them."""
        layout = layout or self.layout
        shown = [row.pictures[: layout.max_pictures] for row in rows]
        ids, mask = layout.batch([row.tokens for row in rows], [len(p) for p in shown])
        views = layout.views
        treatment = np.array([row.treatment for row, p in zip(rows, shown, strict=True) for _ in range(len(p) * views)], np.int64)
        pixels = self._treated([i for p in shown for i in p], treatment, generator, layout.picture_size)
        return Inputs(torch.from_numpy(ids), torch.from_numpy(mask), pixels, tuple(len(p) * views for p in shown))

    def _treated(self, names: list[str], treatment: Rows, generator: torch.Generator, size: int) -> Tensor:
        whole = self.store.take(names)
        pixels = reduced(whole, size)
        if not self.training.augment or not len(pixels):
            return pixels
        sources = [(name, view) for name in names for view in range(self.layout.views)]
        out = torch.empty(pixels.shape)
        for kind in np.unique(treatment).tolist():
            rows = torch.from_numpy(np.flatnonzero(treatment == kind))
            some = pixels[rows]
            if kind == PHOTOGRAPH:
                masks = self._masks([sources[n] for n in rows.tolist()], whole[rows], size) if self.training.backdrops else None
                out[rows] = self._photographed(some, masks, generator)
            else:
                shaken = kind == SHAKEN
                out[rows] = augment.shaken(some, generator, self.training.zoom) if shaken else augment.studio(some, generator)
        return out

    def _photographed(self, pixels: Tensor, masks: Tensor | None, generator: torch.Generator) -> Tensor:
        size = pixels.shape[-1]
        if masks is None:
            masks = torch.full((len(pixels), 1, size, size), 255, dtype=torch.uint8)
        if not len(self.scenery):
            return augment.photograph(pixels, masks, pixels.flip(0), generator)
        drawn = torch.randint(len(self.scenery), (len(pixels),), generator=generator).tolist()
        scenery = reduced(self.store.take([self.scenery[n] for n in drawn])[: len(pixels)], size)
        return augment.photograph(pixels, masks, scenery, generator)

    def _masks(self, sources: list[tuple[str, int]], pixels: Tensor, size: int) -> Tensor:
        """What is product of each of ``pixels`` [N, 3, S, S], which have these names and views, at ``size`` [N, 1, size, size]."""
        found = []
        for source, picture in zip(sources, pixels, strict=True):
            mask = self.masks.pop(source, None)
            found.append(augment.product_mask(picture.numpy()) if mask is None else mask)
            self.masks[source] = found[-1]
            if len(self.masks) * found[-1].nbytes > MASK_BYTES:
                del self.masks[next(iter(self.masks))]
        return reduced(torch.from_numpy(np.stack(found))[:, None], size)


def reduced(pixels: Tensor, size: int) -> Tensor:
    """Pictures [N, C, S, S] at ``size`` pixels a side, by area; as they are where they have that size."""
    if not len(pixels) or pixels.shape[-1] == size:
        return pixels
    mean = F.adaptive_avg_pool1d(torch.eye(pixels.shape[-1])[None], size)[0]  # [S, size]: as two products, which use all cores
    return mean.T @ (pixels.float() @ mean)


@dataclass(frozen=True)
class Shows:
    """What a contrastive stage shows of its pairs, of I items."""

    kinds: dict[str, float] | None = None  # shares of pair types; none: as they come
    product: Rows | None = None  # [I] what counts as one product; default: the SPU
    hard: NDArray[np.int64] | None = None  # [I, H] each item's hard negatives
    spread: bool = False  # hard negatives of the whole batch are shared out among the processes; else each has those of its own part
    levels: bool = False  # also the items as pictures alone and as text alone
    sizes: Sequence[int] = ()  # of the pictures over equal parts of the batches; none: the layout's
    count: int = 1  # batches in all


class PairBatches:
    """The batches of a contrastive stage."""

    def __init__(
        self, encoder: Encoder, pairs: Pairs, store: PixelStore, training: Training, *, seed: Sequence[int], shows: Shows | None = None
    ) -> None:
        shows = shows or Shows()
        kinds, product, self.hard, self.spread, self.levels = shows.kinds, shows.product, shows.hard, shows.spread, shows.levels
        self.layouts, self.count = [encoder.layout_at(size) for size in shows.sizes], shows.count
        self.pairs, self.training, self.seed = pairs, training, tuple(seed)
        queries, items = Samples.of(pairs.queries), Samples.of(pairs.items)
        self.asked_with, self.shown_with = queries.names, items.names  # pictures
        self.reader = Reader(encoder, store, training, Firsts(self.asked_with, np.unique(pairs.query)))
        self.product = pairs.spu_ids if product is None else product
        self.groups = int(max(pairs.group.max(initial=-1), pairs.known[:, 0].max(initial=-1))) + 1
        self.positives = self._positives(asked_by_items=any(_by_item(kind) for kind in kinds or ()))
        words = pairs.words or Words.of(encoder, queries, items)
        self.query_tokens, self.rich, self.title = words.query, words.rich, words.title
        self.has_picture = self.shown_with.counts() > 0
        self.pictured = np.flatnonzero(self.has_picture)
        self.pools = _pools(pairs, queries, kinds)
        real = training.batch - (round(training.batch * training.synthetic) if len(self.pictured) else 0)
        shares = np.array([share for _, share, _ in self.pools])
        self.counts = np.concatenate([np.cumsum(shares / shares.sum() * real), [training.batch]])  # places in a batch, not yet whole
        self.streams = [Stream(len(rows), (*self.seed, n)) for n, (_, _, rows) in enumerate(self.pools)]
        self.synthetic = Stream(max(len(self.pictured), 1), (*self.seed, len(self.pools)))

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """The batch of ``step``; of several processes each takes its ``part``."""
        rng = np.random.default_rng((*self.seed, 97, step, part))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        whole = self._rows(step)
        size = len(whole) // parts
        rows = whole[part * size : (part + 1) * size]
        queries, items, numbers = zip(*(self._pair(kind, query, item, rng) for kind, query, item in rows), strict=True)
        item = np.array(numbers)
        layout = self.layout_of(step)
        sides = {"query": self.reader.read(queries, generator, layout), "item": self.reader.read(items, generator, layout)}
        negative = np.empty(0, np.int64)
        if self.hard is not None:
            negative = np.unique(self.hard[[row for _, _, row in whole[: parts * size]] if self.spread else item])
            negative = negative[negative >= 0]
            negative = np.array_split(negative, parts)[part] if self.spread else negative
            if len(negative):
                sides["negative"] = self.reader.read([self._item(n, "", rng) for n in negative.tolist()], generator, layout)
        if self.levels:
            sides["item_image"] = self.reader.read([self._item(n, "image", rng) for n in numbers], generator, layout)
            sides["item_text"] = self.reader.read([Shown(self.rich[n]) for n in item], generator)
        asker = torch.tensor([self._asker(kind, query) for kind, query, _ in rows])
        products = torch.from_numpy(self.product[item]), asker, torch.from_numpy(self.has_picture[item])
        return Batch(sides, *products, torch.from_numpy(self.product[negative]), tuple(self.pairs.item_ids[item].tolist()))

    def _positives(self, *, asked_by_items: bool) -> Positives:
        """What answers a group of queries, and, where items are asked with, an item: itself and what was chosen together with it."""
        who, what = self.pairs.known.T
        if asked_by_items:
            every = np.arange(len(self.pairs.items))
            together = _together(self.pairs).T
            who = np.concatenate([who, self.groups + every, self.groups + together[0]])
            what = np.concatenate([what, every, together[1]])
        return Positives(who, self.product[what])

    def _asker(self, kind: str, query: int) -> int:
        """Whom :attr:`positives` know: a group of queries, and after them the items; a made photograph shows its own item alone."""
        if kind == "photograph":
            return NOBODY
        return self.groups + query if _by_item(kind) else int(self.pairs.group[query])

    def layout_of(self, step: int) -> Layout | None:
        """The layout of the batch: pictures grow over a stage; None: the encoder's own."""
        return self.layouts[min(step * len(self.layouts) // self.count, len(self.layouts) - 1)] if self.layouts else None

    def _rows(self, step: int) -> list[tuple[str, int, int]]:
        """Pair type, query row and item row of each pair of the step; query row -1: the item's own picture, photographed."""
        out: list[tuple[str, int, int]] = []
        edges = np.floor(np.concatenate([[0.0], self.counts])[:, None] * np.ones(2) + 0.5)  # as many of each at every step
        sizes = np.diff(edges[:, 0]).astype(int)
        for (kind, _, rows), stream, size in zip(self.pools, self.streams, sizes, strict=False):
            out += [(kind, int(q), int(i)) for q, i in rows[stream.take(step * size, (step + 1) * size)]]
        size = int(sizes[-1])
        if size:
            drawn = self.pictured[self.synthetic.take(step * size, (step + 1) * size)]
            out += [("photograph", -1, int(i)) for i in drawn]
        mixed = np.random.default_rng((*self.seed, 98, step)).permutation(len(out))  # every process gets some of each
        return [out[n] for n in mixed]

    def _pair(self, kind: str, query: int, item: int, rng: np.random.Generator) -> tuple[Shown, Shown, int]:
        if kind == "photograph":
            pictures = self.shown_with[item]
            return Shown([], (pictures[rng.integers(len(pictures))],), PHOTOGRAPH), self._item(item, "", rng), item
        asked_as, _, shown_as = kind.partition(":")
        if _by_item(kind):
            return self._item(query, asked_as, rng), self._item(item, shown_as, rng), item
        pictures = self.asked_with[query] if asked_as != "text" else ()
        words = self.query_tokens[query] if asked_as != "image" else []
        return Shown(words, pictures, SHAKEN), self._item(item, shown_as, rng), item

    def _item(self, row: int, shown_as: str, rng: np.random.Generator) -> Shown:
        """An item as the pair type shows it; without a type everything, but for text that is dropped now and then."""
        drawn = drawn_pictures(self.shown_with[row], self.training, rng)
        dropped = rng.random() < self.training.text_dropout
        if shown_as == "rich" or not drawn:
            return Shown(self.rich[row] or self.title[row])
        if shown_as == "image" or (not shown_as and dropped):
            return Shown([], drawn)
        return Shown(self.title[row] if shown_as == "title+image" else self.rich[row], drawn)


def drawn_pictures(pictures: tuple[str, ...], training: Training, rng: np.random.Generator) -> tuple[str, ...]:
    """Those of an item's pictures that a step shows: as many as the recipe says, or a number drawn from its fewest on."""
    order, most = rng.permutation(len(pictures)), training.pictures
    if 0 < training.fewest_pictures < most:
        most = int(rng.integers(training.fewest_pictures, most + 1))
    return tuple(pictures[n] for n in order[:most])


def _by_item(kind: str) -> bool:
    """Whether a pair of that type asks with an item."""
    return kind.partition(":")[0] in ("title+image", "rich+image")


def _pools(pairs: Pairs, queries: Samples, kinds: dict[str, float] | None) -> list[tuple[str, float, NDArray[np.int64]]]:
    """For each pair type that there is something for: its name, its share, and its pairs [n, 2] of query (or item) row and item row."""
    both = np.stack([pairs.query, pairs.item], 1)
    if not kinds:
        return [("", 1.0, both)]
    found = {"text": lambda: both[queries.texts.counts()[pairs.query] > 0], "image": lambda: both[queries.names.counts()[pairs.query] > 0]}
    made: dict[str, NDArray[np.int64]] = {}  # kinds that are asked alike share their rows
    out = []
    for kind in (kind for kind in PAIR_TYPES if kinds.get(kind, 0) > 0):
        asked_as = "item" if _by_item(kind) else kind.partition(":")[0]
        if asked_as not in made:
            made[asked_as] = found.get(asked_as, lambda: _together(pairs))()
        if len(made[asked_as]):
            out.append((kind, kinds[kind], made[asked_as]))
    return out or [("", 1.0, both)]


def _together(pairs: Pairs) -> NDArray[np.int64]:
    """Item → item: what was chosen after the same query, and SKUs of one SPU, both ways [n, 2]."""
    first, second = [], []
    for groups, members in ((pairs.query, pairs.item), (pairs.spu_ids, np.arange(len(pairs.items)))):
        order = np.argsort(groups, kind="stable")
        group, member = groups[order], members[order]
        few = np.append(np.ones(min(len(group), MEMBERS), bool), group[MEMBERS:] != group[:-MEMBERS])
        group, member = group[few], member[few]
        for apart in range(1, MEMBERS):
            a, b = member[:-apart], member[apart:]
            there = (group[:-apart] == group[apart:]) & (a != b)
            first += [a[there], b[there]]
            second += [b[there], a[there]]
    return distinct(np.concatenate(first), np.concatenate(second))
