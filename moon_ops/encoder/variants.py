"""Variants of an exported encoder in smaller numbers: fp16 for a GPU, int8 for a CPU, each with a certificate of what it costs.

A variant lies beside the contract's graphs (``tower.int8.onnx``, ``trunk.int8.onnx``, ``certificate.int8.json``) and leaves the contract as
it is: its vectors may be compared with the contract's, because that comparison is what the certificate measured. int8: the language model's
matrices are quantised, and its activations as they come; a convolution tower's activations get fixed ranges, from the golden pictures.
Q queries, N items, D dimensions, V views, S pixels.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from tokenizers import Tokenizer

from moon_ops.encoder.model import Encoder
from moon_ops.errors import ContractError, InputError
from moon_ops.inputs.contract import Contract, Sample, file_sha256
from moon_ops.ranks import SCORE_BATCH, first_hits
from moon_ops.sessions import has_gpu, session

K = 10  # of recall@K
RECALL_LOSS = 0.01  # the floor: a variant that loses more is not made
PART = 16  # samples in one forward
CALIBRATION = 512  # pictures that fix the ranges of a tower's activations
LARGE = 2**30  # bytes: beyond it the weights go into a file beside the graph, because protobuf ends at two gigabytes
WIDE_IN_FP16 = ["Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Softmax"]  # squares and sums of activations leave fp16's range


@dataclass(frozen=True)
class Golden:
    """What a variant is judged on: ``answers[q]`` is the row in ``items`` of what query q is to find.

    ``pixels`` maps the image id of every picture that is read to uint8 [V, 3, S, S], or [3, S, S] where the encoder reads one view.
    """

    queries: Sequence[Sample]
    items: Sequence[Sample]
    answers: Sequence[int]
    pixels: Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Certificate:
    """What a variant costs, against the fp32 graphs of ``contract_id``; ``graphs`` maps its files to their sha256."""

    variant: str
    contract_id: str
    graphs: dict[str, str]
    provider: str  # what computed the variant's vectors
    samples: int  # Q + N
    min_cosine: float  # of any sample's two vectors
    rank_flips: int  # queries whose nearest item is another
    recall: float  # recall@10 under fp32
    recall_loss: float  # fp32 minus variant, each for both queries and items
    recall_loss_mixed: float  # fp32 minus queries by the variant against items by fp32
    floor: float


def make_variant(directory: Path, variant: str, *, golden: Golden, floor: float = RECALL_LOSS) -> Certificate:
    """Write the ``variant`` ("fp16", "int8") of the encoder exported to ``directory``, and its certificate, beside the fp32 graphs.

    Raises :class:`ContractError` when it loses more than ``floor`` of recall@10, and :class:`InputError` for golden samples on which a loss
    could not be seen; then, as after any other error, no file of the variant is left.
    """
    if variant not in MAKERS:
        raise InputError(f"variant = {variant!r} is not one of {', '.join(MAKERS)}: nothing was made", action="name one of these")
    contract = Contract.load(directory)
    _remove(directory, variant)
    try:
        with _quiet():
            MAKERS[variant](directory, golden)
        certificate = _certify(directory, contract, variant, golden, floor)
        if not max(certificate.recall_loss, certificate.recall_loss_mixed) <= floor:
            raise ContractError(
                f"variant {variant} of {contract.contract_id} loses {certificate.recall_loss:.4f} of recall@{K} {certificate.recall:.4f} "
                f"({certificate.recall_loss_mixed:.4f} against items by fp32), more than {floor}: it was removed",
                action="use fp32",
            )
        (directory / f"certificate.{variant}.json").write_text(json.dumps(asdict(certificate), indent=2) + "\n")
    except BaseException:
        _remove(directory, variant)
        raise
    return certificate


def exported_loss(directory: Path, golden: Golden) -> float | None:
    """Recall@10 of the trained encoder itself minus that of its fp32 graphs (below 0: they find more); None where too little is golden.

    The certificate's least cosine says the same of vectors; this is what it means for searches.
    """
    if len(golden.items) <= K or not golden.queries:
        return None
    contract, encoder = Contract.load(directory), Encoder.load(directory).eval()
    everything, size = [*golden.queries, *golden.items], contract.layout.picture_size
    exported, _ = _embed(directory, contract, "", everything, golden.pixels)
    eager = np.empty_like(exported)
    for rows, ids, mask, flat in _batches(directory, contract, everything, golden.pixels):
        pixels = np.concatenate(flat) if flat else np.zeros((0, 3, size, size), np.uint8)
        with torch.no_grad():
            eager[rows] = encoder(*(torch.from_numpy(part) for part in (ids, mask, pixels))).float().numpy()
    count, answers = len(golden.queries), np.asarray(golden.answers, np.int64)
    by_model, by_graphs = (_search(vectors[:count], vectors[count:], answers)[0] for vectors in (eager, exported))
    return round(by_model - by_graphs, 9)


def _remove(directory: Path, variant: str) -> None:
    for file in (*directory.glob(f"*.{variant}.onnx*"), directory / f"certificate.{variant}.json"):
        file.unlink(missing_ok=True)


def _fp16(directory: Path, golden: Golden) -> None:  # noqa: ARG001 - half floats need no calibration
    """Both graphs in half floats; inputs and outputs stay as they are."""
    for part in ("tower", "trunk"):
        source = directory / f"{part}.onnx"
        blocked = [*DEFAULT_OP_BLOCK_LIST, *WIDE_IN_FP16]
        half = convert_float_to_float16(onnx.load(source), keep_io_types=True, op_block_list=blocked)
        _cast_once(half.graph)
        OnnxModel(half).topological_sort()
        target = directory / f"{part}.fp16.onnx"
        onnx.save(half, target, save_as_external_data=_is_large(source), location=f"{target.name}.data")


def _cast_once(graph: Any) -> None:
    """Drop repeated casts: the converter writes one for each reader of a value, all under one name."""
    once = list({node.output[0]: node for node in graph.node}.values())  # no two nodes of a valid graph write one value
    del graph.node[:]
    graph.node.extend(once)


def _int8(directory: Path, golden: Golden) -> None:
    """The trunk with quantised matrices; the tower likewise, or with quantised convolutions if it is made of them."""
    source = {part: directory / f"{part}.onnx" for part in ("tower", "trunk")}
    nodes = onnx.load(source["tower"], load_external_data=False).graph.node
    convolved = sum(node.op_type == "Conv" for node in nodes) > 1  # a vision transformer has one, which cuts the picture into patches
    for part in source:
        target = directory / f"{part}.int8.onnx"
        if part == "tower" and convolved and golden.pixels:
            _static(source[part], target, golden.pixels)
        else:
            matrices = ["MatMul", "Gemm"]
            large = _is_large(source[part])
            quantize_dynamic(source[part], target, matrices, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=large)


def _static(source: Path, target: Path, pixels: Mapping[str, NDArray[np.uint8]]) -> None:
    """Quantise weights per channel and activations per tensor; norms are first folded into their convolutions."""
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        quantize_static(
            folded,
            target,
            _Pictures(pixels),
            op_types_to_quantize=["Conv", "MatMul", "Gemm", "Add", "Relu"],
            per_channel=True,
            activation_type=QuantType.QUInt8,  # signed ones are two times slower where a processor multiplies u8 by s8
            weight_type=QuantType.QInt8,
        )


MAKERS: dict[str, Callable[[Path, Golden], None]] = {"fp16": _fp16, "int8": _int8}


class _Pictures(CalibrationDataReader):  # type: ignore[misc,unused-ignore]
    """Pictures spread over all of ``pixels``, in batches."""

    def __init__(self, pixels: Mapping[str, NDArray[np.uint8]]) -> None:
        names = sorted(pixels)
        chosen = names[:: -(-len(names) // CALIBRATION)]
        flat = np.concatenate([_views(pixels[name]) for name in chosen])
        self.batches = iter([{"pixels": flat[start : start + PART]} for start in range(0, len(flat), PART)])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next feed, or None after the last."""
        return next(self.batches, None)


def _certify(directory: Path, contract: Contract, variant: str, golden: Golden, floor: float) -> Certificate:
    """Compare the variant with fp32 on the golden samples."""
    _require_usable(contract, golden)
    everything = [*golden.queries, *golden.items]
    exact, _ = _embed(directory, contract, "", everything, golden.pixels)
    small, provider = _embed(directory, contract, f".{variant}", everything, golden.pixels)
    count = len(golden.queries)
    answers = np.asarray(golden.answers, np.int64)
    recall, nearest = _search(exact[:count], exact[count:], answers)
    alone, flipped = _search(small[:count], small[count:], answers)
    mixed, _ = _search(small[:count], exact[count:], answers)
    if not recall > 0:
        raise InputError(f"recall@{K} of the golden queries is 0 under fp32: no loss could be seen", action="bring queries that find items")
    return Certificate(
        variant,
        contract.contract_id,
        graphs={file.name: file_sha256(file) for file in sorted(directory.glob(f"*.{variant}.onnx*"))},
        provider=provider,
        samples=len(everything),
        min_cosine=float((exact * small).sum(1).min()),
        rank_flips=int((nearest != flipped).sum()),
        recall=recall,
        recall_loss=recall - alone,
        recall_loss_mixed=recall - mixed,
        floor=floor,
    )


def _require_usable(contract: Contract, golden: Golden) -> None:
    """Refuse golden samples from which no recall follows."""
    if not len(golden.queries) == len(golden.answers) > 0 or len(golden.items) <= K:
        raise InputError(
            f"golden: {len(golden.queries)} queries, {len(golden.answers)} answers, {len(golden.items)} items give no recall@{K}",
            action=f"bring an answer for each query, and more than {K} items",
        )
    if not 0 <= min(golden.answers) <= max(golden.answers) < len(golden.items):
        raise InputError(f"golden.answers are not all rows of the {len(golden.items)} items", action="give rows, from 0")
    wanted = {i for s in (*golden.queries, *golden.items) for i in s.image_ids[: contract.layout.max_pictures]}
    if missing := sorted(wanted - golden.pixels.keys()):
        raise InputError(f"golden.pixels lacks {len(missing)} pictures, e.g. {missing[0]}", action="bring the pixels of every picture")


def _embed(
    directory: Path, contract: Contract, middle: str, samples: Sequence[Sample], pixels: Mapping[str, NDArray[np.uint8]]
) -> tuple[NDArray[np.float32], str]:
    """Unit vectors [B, D] by ``tower<middle>.onnx`` and ``trunk<middle>.onnx``, and the provider that computed them."""
    cuda: dict[str, str] | None = {} if has_gpu() else None
    tower, trunk = (session(directory / f"{part}{middle}.onnx", cuda=cuda) for part in ("tower", "trunk"))
    width = next(int(given.shape[-1]) for given in trunk.get_inputs() if given.name == "image_tokens")
    none = np.zeros((1, contract.layout.tokens_per_picture, width), np.float32)
    out = np.empty((len(samples), contract.dim), np.float32)
    for rows, ids, mask, flat in _batches(directory, contract, samples, pixels):
        tokens = tower.run(None, {"pixels": np.concatenate(flat)})[0] if flat else none
        out[rows] = trunk.run(None, {"input_ids": ids, "attention_mask": mask, "image_tokens": tokens})[0]
    return out, str(trunk.get_providers()[0])


def _batches(directory: Path, contract: Contract, samples: Sequence[Sample], pixels: Mapping[str, NDArray[np.uint8]]) -> Iterator[Any]:
    """Rows, ids and mask [B, L] and pictures of each forward, samples of similar length together."""
    layout = contract.layout
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    texts = [encoded.ids for encoded in tokenizer.encode_batch([s.text for s in samples], add_special_tokens=False)]
    shown = [s.image_ids[: layout.max_pictures] for s in samples]
    order = np.argsort([len(i) * len(layout.picture()) + len(t) for i, t in zip(shown, texts, strict=True)], kind="stable")
    for start in range(0, len(order), PART):
        rows = order[start : start + PART]
        ids, mask = layout.batch([texts[r] for r in rows], [len(shown[r]) for r in rows])
        yield rows, ids, mask, [_views(pixels[i]) for r in rows for i in shown[r]]


def _search(queries: NDArray[np.float32], items: NDArray[np.float32], answers: NDArray[np.int64]) -> tuple[float, NDArray[np.int64]]:
    """Recall@10 of the answers, and the row of each query's nearest item [Q]."""
    ranks = first_hits(queries, items, answers, np.arange(len(items)))
    nearest = [queries[start : start + SCORE_BATCH] @ items.T for start in range(0, len(queries), SCORE_BATCH)]
    return float((ranks <= K).mean()), np.concatenate([cosines.argmax(1) for cosines in nearest])


def _views(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[None] if pixels.ndim == 3 else pixels


def _is_large(graph: Path) -> bool:
    return sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*")) > LARGE


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser recommends a step that :func:`_static` takes itself; a failure still raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
