"""Stage 1: what is asked and answered, which tokens are learned, and that attention looks back only."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from moon_ops.encoder.pretrain import TASKS, NextToken, Pretraining, TaskBatches, Tasks
from moon_ops.encoder.tokenizer import END
from moon_ops.errors import StageError

ROW: dict[str, Any] = {
    "item_id": 7,
    "title": "canvas boots",
    "category": ["Shoes", "Boots"],
    "brand": "Norvik",
    "description": "warm and dry",
    "attributes": [("colour", "red"), ("size", "37")],
    "image_ids": ["a", "b"],
}


def told(encoder: Any, row: dict[str, Any]) -> dict[str, str]:
    """Prompt → answer, read back from the tokens."""
    return {
        encoder.tokenizer.decode(t.prompt).strip(): encoder.tokenizer.decode(t.answer, skip_special_tokens=False).strip()
        for t in Tasks.of(encoder, [row])
    }


def test_a_row_s_prompts_and_answers(world: Any) -> None:
    assert told(world.encoder, ROW) == {
        "describe the product:": f"warm and dry{END}",
        "list its attributes:": f"colour red, size 37{END}",
        "write its title:": f"canvas boots{END}",
        "name its category:": f"shoes > boots{END}",
        "what is the main subject?": f"norvik boots{END}",
    }


def test_what_a_row_cannot_answer_is_not_asked(world: Any) -> None:
    bare = ROW | {"description": None, "attributes": None, "category": None, "brand": None}
    assert set(told(world.encoder, bare)) == {"write its title:"}
    assert told(world.encoder, bare | {"brand": "Norvik"})["what is the main subject?"] == f"norvik{END}"
    assert told(world.encoder, ROW | {"image_ids": []}) == {}


def test_tasks_stand_item_by_item_and_are_found_by_their_number(world: Any) -> None:
    plain = ROW | {"item_id": 8, "image_ids": ["c"], "description": None}
    found = Tasks.of(world.encoder, [ROW, ROW | {"image_ids": None}, plain])
    assert [(t.item_id, t.pictures) for t in found] == [(7, ("a", "b"))] * 5 + [(8, ("c",))] * 4
    assert found[-1] == found[8] == found[5:][3]
    assert world.encoder.tokenizer.decode(found[5].prompt).strip() == "list its attributes:"
    assert len(Tasks.of(world.encoder, [])) == 0


@pytest.fixture
def made(world: Any, least: Any) -> TaskBatches:
    return TaskBatches(world.encoder, Tasks.of(world.encoder, world.rows), world.store, least().training, seed=(0, 1))


def test_only_the_answer_s_tokens_are_targets(world: Any, made: TaskBatches) -> None:
    prompts = {tuple(e.ids) for e in world.encoder.tokenizer.encode_batch(list(TASKS), add_special_tokens=False)}
    known = {(t.item_id, tuple(t.prompt)): t.answer for t in made.found}
    marks = len(world.encoder.layout.picture())
    for step in range(4):
        batch = made.batch(step)
        assert batch.inputs.pictures == (1,) * 8
        for name, ids, mask, target in zip(batch.names, batch.inputs.input_ids, batch.inputs.attention_mask, batch.is_target, strict=True):
            start, end = int(target.nonzero().min()), int(mask.sum())
            assert target.tolist() == [start <= at < end for at in range(len(ids))]
            prompt = tuple(ids[marks:start].tolist())
            assert prompt in prompts
            answer = ids[start:end].tolist()
            assert known[name, prompt][: len(answer)] == answer
            assert len(answer) == len(known[name, prompt]) or end == world.encoder.layout.max_tokens


def test_a_batch_of_tasks_is_a_function_of_seed_and_step_and_each_task_comes_once(world: Any, least: Any, made: TaskBatches) -> None:
    again = TaskBatches(world.encoder, made.found, world.store, least().training, seed=(0, 1))
    assert torch.equal(again.batch(3).inputs.input_ids, made.batch(3).inputs.input_ids)
    seen = [t for step in range(len(made.found) // 8) for t in made.stream.take(8 * step, 8 * step + 8).tolist()]
    assert len(set(seen)) == len(seen)
    halves = [made.batch(2, part, 2).names for part in (0, 1)]
    assert halves[0] + halves[1] == made.batch(2).names


def test_a_later_token_does_not_change_an_earlier_logit_but_it_changes_the_vector(world: Any) -> None:
    encoder = world.encoder
    ids = torch.tensor([encoder.tokenizer.encode("a red canvas boot for winter").ids])
    other, mask, none = ids.clone(), torch.ones_like(ids), torch.zeros((0, 3, 16, 16), dtype=torch.uint8)
    other[0, -1] = ids[0, 0]
    with torch.no_grad():
        before, after = (encoder.next_token_logits(i, mask, none) for i in (ids, other))
        hidden, changed = (encoder.hidden(i, mask, encoder.tokens_or_none(none)) for i in (ids, other))
    assert before.shape == (1, ids.shape[1], encoder.tokenizer.get_vocab_size())
    assert torch.allclose(before[:, :-1], after[:, :-1], atol=1e-6)
    assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-4)
    assert not torch.allclose(hidden[:, 0], changed[:, 0], atol=1e-5)  # the first token sees the last: attention is bidirectional again


def test_a_logit_depends_on_the_picture_before_it(world: Any, made: TaskBatches) -> None:
    inputs = made.batch(0).inputs
    with torch.no_grad():
        seen, other = (
            world.encoder.next_token_logits(inputs.input_ids, inputs.attention_mask, p) for p in (inputs.pixels, 255 - inputs.pixels)
        )
    assert not torch.allclose(seen, other, atol=1e-4)


def test_the_loss_falls_when_one_batch_is_learned_by_heart(world: Any, made: TaskBatches) -> None:
    model, batch = NextToken(copy.deepcopy(world.encoder)), made.batch(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(batch.inputs, batch.is_target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_chunks_give_the_loss_and_the_gradients_of_one_pass(world: Any, least: Any, chunk: int) -> None:
    def run(size: int) -> tuple[float, list[Any], int]:
        stage = Pretraining(copy.deepcopy(world.encoder), Tasks.of(world.encoder, world.rows), world.store, least(stage1={"steps": 2}), 0)
        passes = stage.losses(stage.model, stage.batch(1, 0, 1), size, torch.device("cpu"))
        for one in passes:
            one().backward()
        return float(stage.found.loss.detach()), [p.grad for p in stage.model.parameters()], len(passes)

    (loss, expected, _), (found_loss, found, passes) = run(0), run(chunk)
    assert passes == -(-8 // chunk)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    for a, b in zip(expected, found, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-5)


def test_a_shop_without_pictures_has_nothing_to_learn_from(world: Any, least: Any) -> None:
    with pytest.raises(StageError, match=r"no item has a picture and a text.*set stage1\.steps = 0"):
        Pretraining(world.encoder, Tasks.of(world.encoder, [ROW | {"image_ids": []}]), world.store, least(), 0)
