"""The table's files hold what was touched, and give back the table as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from moon_ops.ctr.prefetch import WHOLE, Part
from moon_ops.ctr.table_log import TableLog

ROWS = 1000


class Trained:
    """A table that a few steps change, some rows each."""

    def __init__(self, directory: Path, rows: int = ROWS, part: Part = WHOLE, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(rows, 4, sparse=True)
        self.optimizer = torch.optim.SparseAdam([self.embedding.weight], lr=0.1)
        self.log = TableLog(directory, self.embedding.weight, self.optimizer, part)

    def step(self, *rows: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        (self.embedding(torch.tensor(rows)) ** 2).sum().backward()
        self.log.touch()
        self.optimizer.step()

    def state(self) -> list[torch.Tensor]:
        known = self.optimizer.state[self.embedding.weight]
        return [tensor.detach().clone() for tensor in (self.embedding.weight, known["exp_avg"], known["exp_avg_sq"])]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_what_was_touched_is_written_and_all_of_it_comes_back(tmp_path: Path) -> None:
    one = Trained(tmp_path)
    one.log.write(0)
    one.step(1, 2, 2)
    one.step(2, 999)
    one.log.write(2)
    then, files = one.state(), one.log.files
    one.log.write(3)  # nothing has changed
    one.step(5)
    one.log.write(4)
    assert files == ["table-0-of-1", "table-2-of-1"]
    assert one.log.files == [*files, "table-4-of-1"]
    whole, few = (tmp_path.joinpath(f"table-{step}-of-1.0.safetensors").stat().st_size for step in (0, 2))
    assert few < whole / 20
    other = Trained(tmp_path, seed=1)
    other.log.restore(one.log.files, 3)
    assert same(other.state(), one.state())
    one.step(1, 7)
    other.step(1, 7)
    assert same(other.state(), one.state()), "the moments, and the number of steps, are those of one that was not killed"
    one.log.restore(files)
    assert torch.equal(one.embedding.weight, then[0]), "rows that were touched since are as they were"
    one.log.remove_others(files)
    assert {file.name.partition(".")[0] for file in tmp_path.iterdir()} == set(files)


def test_all_rows_are_written_again_when_changes_would_fill_a_table(tmp_path: Path) -> None:
    one = Trained(tmp_path)
    one.log.write(0)
    for step in range(1, 5):
        one.step(*range(step * 100, step * 100 + 300))
        one.log.write(step)
    assert one.log.files == ["table-4-of-1"]
    other = Trained(tmp_path, seed=1)
    other.log.restore(one.log.files, 4)
    assert same(other.state(), one.state())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_another_number_of_processes_takes_its_own_rows(tmp_path: Path, count: int) -> None:
    """Each of three has a third; a row that it calls 4 is row 3 · 4 + its number."""
    parts = [Trained(tmp_path, len(range(number, ROWS, 3)), Part(number, 3), seed=number) for number in range(3)]
    for part in parts:
        part.log.write(0)
        part.step(4, 7)
        part.log.write(1)
    files, whole = parts[0].log.files, [torch.zeros(ROWS, 4) for _ in range(3)]
    assert files == ["table-0-of-3", "table-1-of-3"]
    for number, part in enumerate(parts):
        for tensor, own in zip(whole, part.state(), strict=True):
            tensor[number::3] = own
    for number in range(count):
        other = Trained(tmp_path, len(range(number, ROWS, count)), Part(number, count), seed=9)
        other.log.restore(files, 1)
        assert same(other.state(), [tensor[number::count] for tensor in whole])


def test_a_file_that_was_cut_is_not_readable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = Trained(tmp_path)
    one.log.write(0)
    assert one.log.readable(one.log.files)
    file = tmp_path / "table-0-of-1.0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert not one.log.readable(one.log.files)
    assert "the training begins anew" in caplog.text
    file.unlink()
    assert not one.log.readable(one.log.files)
