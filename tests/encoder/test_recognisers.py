"""The recogniser that a recipe names for stage 2b's entity filter: a real pipeline of spaCy, made here and saved."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moon_ops.encoder import train as training
from moon_ops.encoder.entities import Gazetteer, words
from moon_ops.encoder.recognisers import recogniser, require
from moon_ops.encoder.stage2 import prepare
from moon_ops.encoder.train import train
from moon_ops.errors import InputError
from moon_ops.inputs.contract import title_of
from moon_ops.recipes.encoder import Stage2b
from moon_ops.settings import ROOT

UNTIL = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)


def saved(place: Path, *patterns: str, part: str = "entity_ruler") -> str:
    """A pipeline that marks these words, in a directory; how a recipe names it."""
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe(part)
    if patterns:
        ruler.add_patterns([{"label": f"L{n % 2}", "pattern": [{"LOWER": w} for w in p.split()]} for n, p in enumerate(patterns)])
    nlp.to_disk(place)
    return f"spacy:{place}"


def stage(named: str, **more: Any) -> Stage2b:
    return Stage2b(**({"steps": 1, "recogniser": named} | more))


def test_without_a_name_it_is_the_catalogues_gazetteer_and_spacy_is_not_imported() -> None:
    assert isinstance(recogniser(Stage2b(steps=1), [{"brand": "Nike"}]), Gazetteer)
    code = "import sys, moon_ops.encoder.train, moon_ops.encoder.recognisers as r; from moon_ops.recipes.encoder import Stage2b;"
    code += "r.require(Stage2b(steps=1)); r.recogniser(Stage2b(steps=1), []); assert 'spacy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_saved_pipeline_counts_distinct_entities(tmp_path: Path) -> None:
    named = saved(tmp_path / "ner", "acme", "red lamp", "acme")
    found = recogniser(stage(named), [])
    texts = ("Acme ACME acme", "a Red Lamp by Acme", "red, lamp", "", "nothing here")
    assert [found.count(text) for text in texts] == [1, 2, 0, 0, 0]


def test_a_trained_pipeline_counts_too(tmp_path: Path) -> None:
    """A statistical ner, which learns two sentences by heart."""
    spacy = pytest.importorskip("spacy")
    from spacy.training import Example

    spacy.util.fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("ner").add_label("BRAND")
    known = [("shoes by acme", [(9, 13, "BRAND")]), ("a plain mug", [])]
    examples = [Example.from_dict(nlp.make_doc(text), {"entities": marks}) for text, marks in known]
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(30):
        nlp.update(examples, sgd=optimizer, drop=0.0)
    nlp.to_disk(tmp_path / "ner")
    found = recogniser(stage(f"spacy:{tmp_path / 'ner'}"), [])
    assert [found.count(text) for text, _ in known] == [1, 0]


def test_stage_2b_keeps_the_pairs_that_it_finds_entities_in(world: Any, tmp_path: Path) -> None:
    purchases = world.pairs.of(("purchase",))
    titles = [words(title_of(purchases.items[i])) for i in purchases.item]
    texts = [words(purchases.queries[q].text) for q in purchases.query]
    counts = Counter(word for title, text in zip(titles, texts, strict=True) if text for word in {*title} & {*text} if len(word) > 3)
    (word, _), *_ = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    switches = {"least_entities": 1, "least_similar": False, "category_balance": False}
    named = saved(tmp_path / "ner", word)
    kept = prepare(world.encoder, purchases, world.rows, world.store, stage(named, **switches), 0).kept
    both = enumerate(zip(titles, texts, strict=True))
    wanted = [number for number, (title, text) in both if word in title and (not text or word in text)]
    assert 0 < len(wanted) < len(purchases)
    assert kept.tolist() == wanted


@pytest.mark.parametrize("named", ["spacy", "spacy:", "flair:x", "ner"])
def test_other_names_are_refused_in_the_recipe(named: str) -> None:
    with pytest.raises(ValueError, match=r"stage2b.recogniser = .* must be empty, or spacy:"):
        stage(named)


def test_what_cannot_be_used_is_told_before_the_training(lake: Any, least: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.setattr(training, "build", None)
    recipe = least(stage2a={"steps": 5}, stage2b={"steps": 1, "recogniser": "spacy:anything"})
    with pytest.raises(InputError, match=r'stage2b.recogniser = spacy:anything needs the package spaCy .* → pip install "moon_ops\[ner\]"'):
        train(lake, tmp_path / "e", recipe, trained_until=UNTIL, seed=0)
    require(stage("spacy:anything", least_entities=0))  # the filter is off: nobody is asked for
    require(stage("spacy:anything", steps=0))


def test_a_pipeline_that_is_not_there_or_marks_nothing_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("spacy")
    with pytest.raises(InputError, match=r"spacy:no_such_pipeline cannot be loaded \(OSError: \[E050\].* → name the directory"):
        require(stage("spacy:no_such_pipeline"))
    (tmp_path / "broken").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        require(stage(f"spacy:{tmp_path / 'broken'}"))
    with pytest.raises(InputError, match=r"has no part that marks entities \(it has: sentencizer\)"):
        require(stage(saved(tmp_path / "without", part="sentencizer")))
