"""The contract: what changes its id, what is refused, and the exact sequence that an item becomes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moon_ops.errors import ContractError, InputError
from moon_ops.inputs.contract import SEPARATOR, Contract, Layout, Sample, file_sha256, item_sample, query_sample, require_same, title_of

LAYOUT = Layout(  # a picture is 8 7 9 9 6: T = 2
    picture_size=32,
    tokens_per_picture=2,
    max_pictures=2,
    max_text_tokens=3,
    image_token_id=9,
    before=(8, 7),
    after=(6,),
    pad_token_id=0,
)
CONTRACT = Contract(
    family="smolvlm",
    dim=64,
    layout=LAYOUT,
    weights="w" * 64,
    tokenizer="t" * 64,
    graphs={"item.onnx": "a" * 64, "query.onnx": "b" * 64},
    golden_pixels="g" * 64,
)


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, tuple):
        return (*value, 5)
    if isinstance(value, dict):
        return {**value, "item.onnx": "c" * 64}
    return value + "x"


FIELDS = [f.name for f in dataclasses.fields(Contract) if f.name != "layout"]
LAYOUT_FIELDS = [f.name for f in dataclasses.fields(Layout)]


@pytest.mark.parametrize("name", FIELDS)
def test_the_id_changes_with_every_field(name: str) -> None:
    changed = dataclasses.replace(CONTRACT, **{name: other(getattr(CONTRACT, name))})
    assert changed.contract_id != CONTRACT.contract_id


@pytest.mark.parametrize("name", LAYOUT_FIELDS)
def test_the_id_changes_with_every_field_of_the_layout(name: str) -> None:
    changed = dataclasses.replace(CONTRACT, layout=dataclasses.replace(LAYOUT, **{name: other(getattr(LAYOUT, name))}))
    assert changed.contract_id != CONTRACT.contract_id


def test_the_id_is_short_and_does_not_depend_on_the_order_of_the_graphs() -> None:
    turned = dataclasses.replace(CONTRACT, graphs=dict(reversed(CONTRACT.graphs.items())))
    assert turned.contract_id == CONTRACT.contract_id
    assert CONTRACT.contract_id.startswith("c-")
    assert len(CONTRACT.contract_id) == 14


def test_a_saved_contract_is_read_back(tmp_path: Path) -> None:
    CONTRACT.save(tmp_path)
    assert Contract.load(tmp_path) == CONTRACT
    assert Contract.load(tmp_path).layout.before == (8, 7)
    assert json.loads((tmp_path / "contract.json").read_text())["contract_id"] == CONTRACT.contract_id


def test_a_contract_from_before_the_kinds_of_pictures_keeps_its_id(tmp_path: Path) -> None:
    """Its vectors are in the lake under this id, and releases name it."""
    assert CONTRACT.contract_id == "c-f3fc6192344f"
    CONTRACT.save(tmp_path)
    path = tmp_path / "contract.json"
    content = json.loads(path.read_text())
    del content["golden_kinds"]
    path.write_text(json.dumps(content))
    assert Contract.load(tmp_path) == CONTRACT


@pytest.mark.parametrize("name", FIELDS)
def test_an_edited_field_is_refused(tmp_path: Path, name: str) -> None:
    CONTRACT.save(tmp_path)
    path = tmp_path / "contract.json"
    content = json.loads(path.read_text())
    edited = dataclasses.replace(CONTRACT, **{name: other(content[name])}).contract_id
    path.write_text(json.dumps({**content, name: other(content[name])}))
    with pytest.raises(ContractError, match=f"says {CONTRACT.contract_id} but its content hashes to {edited} → export the encoder again"):
        Contract.load(tmp_path)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda content: content.pop("contract_id"), "contract_id"),
        (lambda content: content.pop("weights"), "weights"),
        (lambda content: content.pop("layout"), "layout"),
        (lambda content: content["layout"].pop("picture_size"), "picture_size"),
        (lambda content: content["layout"].pop("before"), "before"),
        (lambda content: content["layout"].update(around_token_id=8), "around_token_id"),
        (lambda content: content.update(note="mine"), "note"),
    ],
    ids=["no id", "no weights", "no layout", "a gap in the layout", "no marks", "marks of old", "a note"],
)
def test_a_field_more_or_less_is_refused(tmp_path: Path, edit: Any, named: str) -> None:
    CONTRACT.save(tmp_path)
    path = tmp_path / "contract.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ContractError, match=rf"contract\.json is not a contract as it was written \(.*{named}"):
        Contract.load(tmp_path)


@pytest.mark.parametrize("text", ["", '{"contract_id": "c-1', "[]"])
def test_a_file_that_is_no_contract_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "contract.json").write_text(text)
    with pytest.raises(ContractError, match=r"contract\.json is not a contract"):
        Contract.load(tmp_path)


def test_a_directory_without_a_contract_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"holds no contract\.json: it is not an exported encoder → run `moon export` first"):
        Contract.load(tmp_path)


def test_two_contracts_never_meet() -> None:
    require_same("c-1", "c-1", what="table embeddings/v1")
    with pytest.raises(ContractError, match=r"table embeddings/v1: contract c-1 was about to meet contract c-2"):
        require_same("c-1", "c-2", what="table embeddings/v1")


def test_batch_is_pictures_then_text_padded_to_the_longest() -> None:
    ids, mask = LAYOUT.batch([[101, 102], [], [103]], [1, 2, 0])
    picture = [8, 7, 9, 9, 6]
    assert ids.tolist() == [[*picture, 101, 102, 0, 0, 0], [*picture, *picture], [103, *[0] * 9]]
    assert mask.tolist() == [[1] * 7 + [0] * 3, [1] * 10, [1] + [0] * 9]
    assert ids.dtype == mask.dtype == np.int64


def test_batch_cuts_what_is_too_much() -> None:
    ids, mask = LAYOUT.batch([[1, 2, 3, 4, 5]], [7])
    assert ids.tolist() == [[8, 7, 9, 9, 6] * 2 + [1, 2, 3]]
    assert mask.all()


def test_with_a_core_region_each_picture_has_two_places() -> None:
    twice = dataclasses.replace(LAYOUT, core_region="saliency")
    assert (LAYOUT.views, twice.views) == (1, 2)
    assert twice.picture() == [8, 7, 9, 9, 6] * 2
    ids, mask = twice.batch([[101], [], [102]], [1, 9, 0])
    assert ids.tolist() == [[8, 7, 9, 9, 6] * 2 + [101] + [0] * 9, [8, 7, 9, 9, 6] * 4, [102] + [0] * 19]
    assert mask.sum(1).tolist() == [11, 20, 1]


def test_a_pad_token_in_the_text_is_no_padding() -> None:
    ids, mask = LAYOUT.batch([[0, 5]], [0])
    assert ids.tolist() == [[0, 5]]
    assert mask.tolist() == [[1, 1]]


def test_a_sample_of_nothing_is_refused_by_number() -> None:
    with pytest.raises(InputError, match="sample 1 has neither text nor a picture → give one of them"):
        LAYOUT.batch([[5], [], []], [0, 0, 1])


def test_an_item_is_read_in_order() -> None:
    item = {
        "title": "Wool coat",
        "category": ["Clothes", "Coats"],
        "brand": "Nord",
        "attributes": [("colour", "red"), ("size", "L")],
        "description": "Warm.",
        "image_ids": ["b", "a"],
        "price": 99.0,
    }
    assert item_sample(item) == Sample("Wool coat | Clothes Coats | Nord | red L | Warm.", ("b", "a"))


def test_an_empty_segment_keeps_its_place_unless_nothing_follows() -> None:
    bare = {"title": "Wool coat", "category": [], "brand": None, "attributes": None, "description": "", "image_ids": None}
    assert item_sample(bare) == item_sample({"title": "Wool coat"}) == Sample("Wool coat", ())
    assert item_sample({**bare, "category": ["Coats"]}).text == "Wool coat | Coats"
    assert item_sample({**bare, "brand": "Nord"}).text == "Wool coat |  | Nord"
    assert item_sample({**bare, "description": "Warm."}).text == "Wool coat |  |  |  | Warm."
    assert item_sample({**bare, "title": "", "category": ["Coats"]}).text == " | Coats"


def test_a_seller_s_bar_ends_no_segment() -> None:
    item = {
        "title": "Coat | red | L",
        "category": ["Clothes|Coats"],
        "brand": "N|rd",
        "attributes": [("size", "L | XL")],
        "description": "Warm | soft |",
    }
    text = item_sample(item).text
    assert text == "Coat / red / L | Clothes/Coats | N/rd | L / XL | Warm / soft /"
    assert len(text.split(SEPARATOR)) == 5


def test_the_title_is_the_first_segment() -> None:
    assert title_of(item_sample({"title": "Coat | red", "category": ["Coats"]})) == "Coat / red"
    assert title_of(Sample("Wool coat")) == "Wool coat"


def test_a_query_is_its_text_its_picture_or_both() -> None:
    assert query_sample({"text": "red coat", "image_id": None}) == Sample("red coat", ())
    assert query_sample({"text": None, "image_id": "a"}) == Sample("", ("a",))
    assert query_sample({"text": "red coat", "image_id": "a"}) == Sample("red coat", ("a",))


def test_file_sha256(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"moon")
    assert file_sha256(tmp_path / "graph.onnx") == hashlib.sha256(b"moon").hexdigest()
