"""Tables in files without a name: what is written is what is read, in parts and as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from moon_ops import pieces
from moon_ops.lake import spills


def test_each_part_has_its_rows_in_the_order_in_which_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spills.tempfile, "tempdir", str(tmp_path))
    parts = spills.Parts(3)
    for first in (0, 10):
        numbers = np.arange(first, first + 10)
        parts.add(pa.table({"number": numbers, "text": [f"t{n}" for n in numbers]}), np.where(numbers % 2, 2, 0))
    assert not list(tmp_path.iterdir()), "nobody has to remove anything"
    assert [part["number"].to_pylist() for part in parts] == [list(range(0, 20, 2)), [], list(range(1, 20, 2))]
    assert not list(spills.Parts(3)), "of nothing nobody knows the columns"
    with pytest.raises(ValueError, match="no table"):
        spills.mapped([])


def test_a_mapped_table_is_its_parts_with_texts_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "AT_ONCE", 4)
    texts = pa.chunked_array([["red", None], ["blue", "red", None, "green"]])
    numbers, values = spills.numbered(texts)
    table = pa.table({"at": np.arange(6), "text": numbers.combine_chunks()})
    found = spills.mapped([table, table.slice(0, 0), table.slice(1, 2)], {"text": values})
    assert found["text"].to_pylist() == [*texts.to_pylist(), None, "blue"]
    assert found["at"].to_pylist() == [0, 1, 2, 3, 4, 5, 1, 2]
    pieces.let_columns_go()
    assert found["at"].to_pylist()[-1] == 2
    again, same = spills.numbered(found["text"])
    assert (again.to_pylist(), same.to_pylist()) == ([0, None, 1, 0, None, 2, None, 1], ["red", "blue", "green"])
    assert set(spills.different(found.slice(6)["text"])) == {None, "blue"}
    assert set(spills.different(texts)) == {"red", "blue", "green", None}
    assert spills.different(pa.chunked_array([pa.nulls(2, pa.string())])) == [None]
    assert spills.different(pa.chunked_array([], pa.string())) == []
