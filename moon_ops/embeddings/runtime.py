"""Run an exported encoder with ONNX Runtime: the one inference path, for bulk production, for evaluation and for serving.

Reads an encoder's directory (graphs, tokenizer, contract) and nothing of ours that made it. A variant (fp16, int8) is the same encoder
in other numbers: its vectors may be compared with the contract's, and its certificate says what that costs.
B samples, N pictures, V views, S pixels, L tokens, D dimensions.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moon_ops.errors import ContractError, InputError
from moon_ops.inputs.contract import Contract, Sample, file_sha256
from moon_ops.inputs.golden_pictures import changed_kinds
from moon_ops.inputs.regions import golden_views
from moon_ops.sessions import has_gpu, session

Pixels = NDArray[np.uint8]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """How much goes into one forward: samples, pictures in one run of the tower, and the step to which counts and lengths are rounded."""

    samples: int
    pictures: int
    step: int = 1

    def rounded(self, count: int) -> int:
        """The next power of two up to ``step``, then the next multiple of it; with step 1 the count itself."""
        return min(1 << max(count - 1, 0).bit_length(), self.step) if count <= self.step else -(-count // self.step) * self.step


CPU = Shape(samples=16, pictures=8)  # more does not stay in a core's cache, and is slower
CUDA = Shape(samples=64, pictures=64, step=16)  # few shapes: kernels are chosen, and memory is taken, for each shape that occurs
ON_CUDA = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}  # else the arena doubles with each new shape


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward: ids and mask [B', L'], of which the first ``samples`` rows count; pixels [N·V, 3, S, S]."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    pixels: Pixels
    samples: int


class Runtime:
    """An encoder ready to embed, from many threads at once. Opening one checks every file against the contract.

    ``gpu_bytes`` limits the memory that each graph takes on a GPU; 0 is no limit.
    """

    def __init__(self, directory: Path, *, threads: int = 2, variant: str = "fp32", gpu_bytes: int = 0) -> None:
        self.contract = Contract.load(directory)
        self.variant, self.threads = variant, threads
        _verify(self.contract, directory, variant)
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # "<image>" in a title is a word, not the place of a picture
        self.on_gpu = has_gpu()
        self.shape = CUDA if self.on_gpu else CPU
        middle = "" if variant == "fp32" else f".{variant}"
        self._files = [directory / f"{part}{middle}.onnx" for part in ("tower", "trunk")]
        self._on_cuda = ON_CUDA | ({"gpu_mem_limit": str(gpu_bytes)} if gpu_bytes else {})
        self._sessions: dict[int, tuple[Any, Any]] = {}
        self._opening = threading.Lock()
        self._lanes = threading.BoundedSemaphore(1 if self.on_gpu else threads)

    @property
    def contract_id(self) -> str:
        """The contract of every vector made here."""
        return self.contract.contract_id

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.contract.dim

    def embed(self, samples: Sequence[Sample], pixels: Mapping[str, Pixels]) -> NDArray[np.float32]:
        """Unit vectors [B, D]; ``pixels`` maps every image id of the samples to uint8 [V, 3, S, S] of its V views
        (:func:`moon_ops.inputs.regions.views`), or [3, S, S] where the encoder reads one.

        All threads work on one forward: the way to the shortest answer. Samples are run in batches of similar length, so that short texts
        do not pay for long ones; the order returned is the order given. Raises :class:`InputError` for a sample with neither text nor
        pictures.
        """
        texts = self.tokenize([s.text for s in samples])
        pictures = [[pixels[i] for i in s.image_ids[: self.contract.layout.max_pictures]] for s in samples]
        out = np.empty((len(samples), self.dim), np.float32)
        for rows in self.plan(texts, [len(p) for p in pictures]):
            out[rows] = self.forward(self.batch([texts[r] for r in rows], [pictures[r] for r in rows]))
        return out

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without a limit on their number."""
        return [encoded.ids for encoded in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def plan(self, texts: Sequence[Sequence[int]], pictures: Sequence[int]) -> list[NDArray[np.int64]]:
        """The rows of each forward: samples of similar length, then of as many pictures, belong together."""
        layout = self.contract.layout
        shown = np.minimum(np.array(pictures, np.int64), layout.max_pictures)
        lengths = np.minimum(shown * len(layout.picture()) + np.array([len(t) for t in texts], np.int64), layout.max_tokens)
        order = np.lexsort((shown, lengths))
        return [order[start : start + self.shape.samples] for start in range(0, len(order), self.shape.samples)]

    def batch(self, texts: Sequence[Sequence[int]], pictures: Sequence[Sequence[Pixels]]) -> Batch:
        """The tensors of samples given as token ids and pictures (at most ``max_pictures`` each), padded to a shape that occurs often."""
        layout = self.contract.layout
        ids, mask = layout.batch(texts, [len(p) for p in pictures])
        more, longer = (self.shape.rounded(n) - n for n in ids.shape)
        if more or longer:
            ids = np.pad(ids, ((0, more), (0, longer)), constant_values=layout.pad_token_id)
            mask = np.pad(mask, ((0, more), (0, longer)))
            mask[len(texts) :, 0] = 1  # the mean over no token is not a number
        flat = [self._views(p) for several in pictures for p in several]
        size = layout.picture_size
        return Batch(ids, mask, np.concatenate(flat) if flat else np.zeros((0, 3, size, size), np.uint8), len(texts))

    def forward(self, batch: Batch, *, bulk: bool = False) -> NDArray[np.float32]:
        """Unit vectors [B, D] of one batch. ``bulk``: on one core, so that several threads run a batch each and none waits for another."""
        with self._lanes if bulk else contextlib.nullcontext():
            tower, trunk = self._open(1 if bulk and not self.on_gpu else self.threads)
            feeds = {"input_ids": batch.ids, "attention_mask": batch.mask, "image_tokens": self._tokens(tower, trunk, batch.pixels)}
            return np.asarray(trunk.run(None, feeds)[0], np.float32)[: batch.samples]

    def warm_up(self, *, bulk: bool = False) -> None:
        """Open the graphs and run them once, without and with a picture, so that the first request does not wait for it."""
        layout = self.contract.layout
        picture = np.zeros((layout.views, 3, layout.picture_size, layout.picture_size), np.uint8)
        for pictures in ([], [picture]):
            self.forward(self.batch([[layout.pad_token_id]], [pictures]), bulk=bulk)

    def _tokens(self, tower: Any, trunk: Any, pixels: Pixels) -> NDArray[np.float32]:
        """Picture tokens [N', T, W] of pixels [N, 3, S, S]; the rows after the first N are zeros that no slot takes."""
        most, found = self.shape.pictures, []
        for start in range(0, len(pixels), most):
            part = pixels[start : start + most]
            more = self.shape.rounded(len(part)) - len(part)
            padded = np.pad(part, ((0, more), (0, 0), (0, 0), (0, 0))) if more else part
            found.append(tower.run(None, {"pixels": padded})[0][: len(part)])
        more = self.shape.rounded(max(len(pixels), 1)) - len(pixels)
        if more:
            slots = next(given for given in trunk.get_inputs() if given.name == "image_tokens")  # W is more than D in some families
            found.append(np.zeros((more, self.contract.layout.tokens_per_picture, int(slots.shape[-1])), np.float32))
        return np.concatenate(found) if len(found) > 1 else found[0]

    def _open(self, threads: int) -> tuple[Any, Any]:
        """The tower and the trunk, in sessions of ``threads`` each; made when they are first needed."""
        with self._opening:
            if threads not in self._sessions:
                tower, trunk = (session(file, threads=threads, cuda=self._on_cuda if self.on_gpu else None) for file in self._files)
                self._sessions[threads] = (tower, trunk)
            return self._sessions[threads]

    def _views(self, pixels: Pixels) -> Pixels:
        """uint8 [V, 3, S, S] of one picture; :class:`InputError` for another shape, which would take a neighbour's place."""
        layout = self.contract.layout
        wanted = (layout.views, 3, layout.picture_size, layout.picture_size)
        found = pixels[None] if pixels.ndim == 3 else pixels
        if found.shape != wanted:
            raise InputError(
                f"a picture's pixels are {list(pixels.shape)}, but contract {self.contract_id} reads {list(wanted)}",
                action=f"make them with moon_ops.inputs.regions.views(picture, {layout.picture_size}, {layout.core_region!r})",
            )
        return found


def _verify(contract: Contract, directory: Path, variant: str) -> None:
    """Refuse a directory whose files are not the ones that the contract, or the variant's certificate, was made of."""
    graphs = contract.graphs if variant == "fp32" else _certified(contract, directory, variant)
    for name, sha in {"tokenizer.json": contract.tokenizer, **graphs}.items():
        path = directory / name
        found = file_sha256(path) if path.is_file() else "nothing"
        if found != sha:
            raise ContractError(
                f"{path} has sha256 {found[:12]}, but contract {contract.contract_id} is for {sha[:12]}",
                action="export or download the encoder again" + ("" if variant == "fp32" else f", then make its variant {variant} again"),
            )
    made = golden_views(contract.layout.picture_size, contract.layout.core_region)
    if made != contract.golden_pixels:
        raise ContractError(
            f"pictures are resized to pixels {made[:12]}, but contract {contract.contract_id} is for {contract.golden_pixels[:12]}",
            action="install the Pillow version in constraints.txt, or export the encoder again",
        )
    if not contract.golden_kinds:
        _say_older(contract.contract_id)
    elif changed := changed_kinds(contract.golden_kinds):
        raise ContractError(
            f"pictures ({', '.join(changed)}) become other pixels here than where contract {contract.contract_id} was exported",
            action="install the versions in constraints.txt, or train and export the encoder again",
        )


@functools.cache
def _say_older(contract_id: str) -> None:
    """Once per contract and process: its vectors stay comparable but for pictures that were decoded otherwise."""
    log.warning(
        "contract %s was exported before transparent pictures became white (they were black), 16-bit grey was scaled and colours were "
        "converted from their profiles; pictures are decoded by the rules of today → if the shop has such pictures, train and export again",
        contract_id,
    )


def _certified(contract: Contract, directory: Path, variant: str) -> dict[str, str]:
    """The variant's graphs, file → sha256, as its certificate names them; :class:`ContractError` if there is none for this contract."""
    path = directory / f"certificate.{variant}.json"
    make = f"make it with `moon export CHECKPOINT --variant {variant}`, or open the variant fp32"
    if not path.is_file():
        raise ContractError(f"{directory} holds no {path.name}: nobody has measured what variant {variant!r} costs", action=make)
    try:
        certificate = json.loads(path.read_text())
        named, graphs, lost, floor = (certificate[key] for key in ("contract_id", "graphs", "recall_loss", "floor"))
        sound = {f"{part}.{variant}.onnx" for part in ("tower", "trunk")} <= set(graphs) and lost <= floor
    except (ValueError, KeyError, TypeError) as edited:
        raise ContractError(f"{path} is not a certificate as it was written ({edited})", action=make) from edited
    if named != contract.contract_id:
        raise ContractError(f"{path} is for contract {named}, but the encoder's is {contract.contract_id}", action=make)
    if not sound:
        raise ContractError(f"{path} does not cover both graphs, or records a recall loss of {lost} above {floor}", action=make)
    return dict(graphs)
