"""Which recogniser counts the entities of stage 2b's filter: the catalogue's own values, or a pipeline of spaCy that a recipe names.

The package spaCy (extra ``moon_ops[ner]``) is imported only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moon_ops.encoder.entities import Gazetteer, Recognizer, words
from moon_ops.errors import InputError
from moon_ops.recipes.encoder import SPACY, Stage2b


class Pipeline:
    """A pipeline of spaCy: an entity is what it marks as one, by its words, whatever its label."""

    def __init__(self, nlp: Any) -> None:
        self.nlp = nlp

    def count(self, text: str) -> int:
        """The distinct entities that the pipeline marks in ``text``."""
        return len({words(entity.text) for entity in self.nlp(text).ents} - {()})


def require(stage: Stage2b) -> None:
    """Raise what :func:`recogniser` would, before a training begins: stage 2b comes last."""
    if stage.steps and stage.least_entities and stage.recogniser:
        _pipeline(stage.recogniser.removeprefix(SPACY))


def recogniser(stage: Stage2b, rows: Iterable[dict[str, Any]]) -> Recognizer:
    """What ``stage.recogniser`` names; without a name the gazetteer of the catalogue's ``rows``.

    Raises :class:`InputError` without the package spaCy, for a pipeline that it cannot load, and for one that marks no entities.
    """
    return _pipeline(stage.recogniser.removeprefix(SPACY)) if stage.recogniser else Gazetteer.from_items(rows)


def _pipeline(name: str) -> Pipeline:
    said = f"stage2b.recogniser = {SPACY}{name}"
    try:
        import spacy
    except ImportError as absent:
        raise InputError(f"{said} needs the package spaCy ({absent})", action='pip install "moon_ops[ner]"') from absent
    try:
        nlp = spacy.load(name)
    except (OSError, ValueError, KeyError) as fault:  # spaCy's words for no such pipeline, a config that is wrong, a part that is missing
        problem = f"{said} cannot be loaded ({type(fault).__name__}: {str(fault).splitlines()[0]})"
        raise InputError(problem, action="name the directory of a saved pipeline, or a pipeline package that is installed") from fault
    if not any("doc.ents" in nlp.get_pipe_meta(part).assigns for part in nlp.pipe_names):
        problem = f"{said} has no part that marks entities (it has: {', '.join(nlp.pipe_names) or 'none'}): all pairs would be dropped"
        raise InputError(problem, action="name a pipeline with ner or entity_ruler, or leave stage2b.recogniser empty")
    return Pipeline(nlp)
