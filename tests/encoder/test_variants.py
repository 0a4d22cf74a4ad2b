"""Variants: beside the contract's graphs and under its contract, certified by what they lose, and gone when that is too much."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from moon_ops.encoder import variants
from moon_ops.encoder.export import export
from moon_ops.encoder.model import build
from moon_ops.encoder.variants import Golden, make_variant
from moon_ops.errors import ContractError, InputError
from moon_ops.inputs.contract import Contract, Sample, file_sha256

TEXTS = ["red cotton dress", "blue leather boots", "green ceramic mug", "dotted lamp"]
TOWERS = {
    "vit": {},
    "conv": {"tower": "conv", "vision": {"channels": [8, 16, 24], "blocks": 0}},
}


@pytest.fixture(scope="module", params=TOWERS)
def exported(request: pytest.FixtureRequest, least: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that has learned nothing, with a tower of one kind."""
    place = Path(tmp_path_factory.mktemp(request.param))
    recipe = least()
    chosen = replace(recipe, **TOWERS[request.param])
    build(chosen, TEXTS * 8, seed=0).eval().save(place)
    export(place)
    return place


@pytest.fixture(scope="module")
def golden(exported: Path) -> Golden:
    """Twenty items with a picture each; a query is an item's picture with noise."""
    size = Contract.load(exported).layout.picture_size
    generator = np.random.default_rng(0)
    items = generator.integers(0, 256, (20, 3, 4, 4)).repeat(size // 4, 2).repeat(size // 4, 3)
    queries = np.clip(items + generator.normal(0, 8, items.shape), 0, 255)
    pixels = {f"i{n}": p.astype(np.uint8) for n, p in enumerate(items)} | {f"q{n}": p.astype(np.uint8)[None] for n, p in enumerate(queries)}
    return Golden(
        [Sample("", (f"q{n}",)) for n in range(20)], [Sample(TEXTS[n % 4], (f"i{n}",)) for n in range(20)], list(range(20)), pixels
    )


def files(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def operators(graph: Path) -> set[str]:
    return {node.op_type for node in onnx.load(graph).graph.node}


@pytest.mark.parametrize("variant", ["int8", "fp16"])
def test_a_variant_lies_beside_the_contract_with_its_certificate(exported: Path, golden: Golden, variant: str) -> None:
    before, contract = files(exported), (exported / "contract.json").read_bytes()
    certificate = make_variant(exported, variant, golden=golden)
    graphs = {f"tower.{variant}.onnx", f"trunk.{variant}.onnx"}
    assert files(exported) - before <= graphs | {f"certificate.{variant}.json"}
    assert (exported / "contract.json").read_bytes() == contract
    assert json.loads((exported / f"certificate.{variant}.json").read_text()) == asdict(certificate)
    assert certificate.contract_id == Contract.load(exported).contract_id
    assert certificate.graphs == {name: file_sha256(exported / name) for name in graphs}
    assert certificate.samples == 40
    assert 0.98 < certificate.min_cosine < 1
    assert certificate.recall > 0.5
    assert max(certificate.recall_loss, certificate.recall_loss_mixed) <= certificate.floor == 0.01
    for name in graphs:
        onnx.checker.check_model(exported / name)


def test_int8_quantises_both_graphs(exported: Path, golden: Golden) -> None:
    make_variant(exported, "int8", golden=golden)
    assert "MatMulInteger" in operators(exported / "trunk.int8.onnx")
    convolved = exported.name.startswith("conv")
    assert ("QuantizeLinear" if convolved else "MatMulInteger") in operators(exported / "tower.int8.onnx")
    kinds = {numpy_helper.to_array(w).dtype for w in onnx.load(exported / "tower.int8.onnx").graph.initializer if len(w.dims) >= 2}
    assert np.dtype(np.int8) in kinds


def test_fp16_keeps_inputs_and_outputs(exported: Path, golden: Golden) -> None:
    make_variant(exported, "fp16", golden=golden)
    for part in ("tower", "trunk"):
        exact, half = (onnx.load(exported / f"{part}{middle}.onnx").graph for middle in ("", ".fp16"))
        assert list(half.input) == list(exact.input)
        assert [o.type.tensor_type.elem_type for o in half.output] == [onnx.TensorProto.FLOAT]
        assert onnx.TensorProto.FLOAT16 in {w.data_type for w in half.initializer}


def test_a_catalogue_without_pictures_can_be_quantised(exported: Path) -> None:
    items = [Sample(f"{text} {n}") for text in TEXTS for n in range(4)]
    certificate = make_variant(exported, "int8", golden=Golden(items, items, range(16), {}))
    assert certificate.recall == 1.0


def damaged(directory: Path, _: Golden) -> None:
    """A maker that loses what the trunk and the tower have learned."""
    for part in ("tower", "trunk"):
        graph = onnx.load(directory / f"{part}.onnx")
        generator = np.random.default_rng(0)
        for weight in graph.graph.initializer:
            value = numpy_helper.to_array(weight)
            if value.ndim >= 2 and value.dtype == np.float32:
                weight.CopyFrom(numpy_helper.from_array(generator.permutation(value.ravel()).reshape(value.shape), weight.name))
        onnx.save(graph, directory / f"{part}.int8.onnx")


def test_a_variant_that_loses_too_much_is_removed(exported: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    make_variant(exported, "int8", golden=golden)
    monkeypatch.setitem(variants.MAKERS, "int8", damaged)
    with pytest.raises(
        ContractError, match=r"variant int8 of c-\w+ loses -?0\.\d+ of recall@10 .* more than 0\.01: it was removed → use fp32"
    ):
        make_variant(exported, "int8", golden=golden)
    assert not [name for name in files(exported) if "int8" in name]
    Contract.load(exported)


def test_the_loss_is_measured_alone_and_mixed(exported: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both from the vectors themselves, by sorting all of them."""
    made: dict[str, NDArray[np.float32]] = {}
    embed = variants._embed

    def kept(directory: Path, contract: Contract, middle: str, *rest: Any) -> Any:
        found = embed(directory, contract, middle, *rest)
        made[middle] = found[0]
        return found

    monkeypatch.setattr(variants, "_embed", kept)
    monkeypatch.setitem(variants.MAKERS, "int8", damaged)
    found = make_variant(exported, "int8", golden=golden, floor=1.0)

    def recall(queries: str, items: str) -> float:
        ranked = np.argsort(-(made[queries][:20] @ made[items][20:].T), axis=1)[:, :10]
        return float(np.mean([answer in row for answer, row in zip(golden.answers, ranked, strict=True)]))

    assert found.recall == pytest.approx(recall("", ""))
    assert found.recall_loss == pytest.approx(recall("", "") - recall(".int8", ".int8"))
    assert found.recall_loss_mixed == pytest.approx(recall("", "") - recall(".int8", ""))
    assert found.min_cosine == pytest.approx((made[""] * made[".int8"]).sum(1).min())
    nearest = [(made[middle][:20] @ made[middle][20:].T).argmax(1) for middle in ("", ".int8")]
    assert found.rank_flips == (nearest[0] != nearest[1]).sum() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": [], "answers": []}, "0 queries, 0 answers"),
        ({"answers": [0]}, "20 queries, 1 answers"),
        ({"answers": [20] * 20}, "are not all rows of the 20 items"),
        ({"answers": [-1] * 20}, "are not all rows of the 20 items"),
        ({"pixels": {}}, r"golden\.pixels lacks 40 pictures, e\.g\. i0"),
    ],
)
def test_golden_samples_that_show_nothing_are_refused(exported: Path, golden: Golden, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_variant(exported, "int8", golden=replace(golden, **changes))
    assert not [name for name in files(exported) if "int8" in name]


def test_a_recall_of_nothing_can_show_no_loss(exported: Path, golden: Golden) -> None:
    """The nearest items of a text, and as its answer the one farthest away."""
    texts = [Sample(TEXTS[n % 4]) for n in range(20)] + [Sample("", ("q0",))]
    with pytest.raises(InputError, match="recall@10 of the golden queries is 0 under fp32"):
        make_variant(exported, "int8", golden=Golden([Sample(TEXTS[0] + " red")] * 3, [*texts], [20] * 3, golden.pixels))


def test_an_unknown_variant_is_refused(exported: Path, golden: Golden) -> None:
    with pytest.raises(InputError, match="variant = 'int4' is not one of fp16, int8"):
        make_variant(exported, "int4", golden=golden)
