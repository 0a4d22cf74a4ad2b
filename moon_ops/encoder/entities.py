"""Named entities in query texts and titles: a gazetteer of the catalogue's own values, for the stage-2b filter (arXiv 2511.11305).

The paper counts the named entities of a text and does not say how they are recognised. Here an entity is a brand, a category name or an
attribute value that some item of this catalogue has, so nothing has to be downloaded and every language written with spaces works.
Chinese, Japanese and Thai are written without: they need another :class:`Recognizer`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

WORD = re.compile(r"[^\W_]+")
ACCENTS = re.compile("[\u0300-\u036f]")  # of Latin, Greek and Cyrillic; the vowel signs of other scripts stay
FILLERS = frozenset({"and", "one", "the", "for", "from", "with", "free", "other", "all"})  # words of values that name nothing by themselves
SHORTEST = 3  # letters of a part of a value, and of a guessed singular: "of" and "bu" name nothing

Phrase = tuple[str, ...]


class Recognizer(Protocol):
    """Whatever can tell how many named entities a text mentions."""

    def count(self, text: str) -> int:
        """The number of distinct named entities in ``text``."""


def words(text: str) -> Phrase:
    """The words of a text in order, case, accents and compatibility forms folded: ``"Café T-Shirt"`` → ``cafe, t, shirt``."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", ACCENTS.sub("", unicodedata.normalize("NFKD", text)))
    return tuple(WORD.findall(text.casefold()))


class Gazetteer:
    """The catalogue's named entities. Built once, it counts some hundred thousand short texts a second."""

    def __init__(self, spellings: dict[Phrase, Phrase]) -> None:
        """``spellings``: each phrase that is recognised → the entity that it names; an entity may have several."""
        self._spellings = spellings
        self._longest: dict[str, int] = {}  # first word → the most words of a phrase that begins with it
        for phrase in spellings:
            self._longest[phrase[0]] = max(self._longest.get(phrase[0], 0), len(phrase))

    def __len__(self) -> int:
        return len(set(self._spellings.values()))

    @classmethod
    def from_items(cls, items: Iterable[dict[str, Any]]) -> Gazetteer:
        """The brands, category names and attribute values of item rows (those of the lake's ``items`` table).

        A category name is also known in the singular and the plural (English endings), an attribute value of several words also by each
        of them. Left out is what names nothing: numbers, single characters, and words that are the name of an attribute ("colour").
        """
        exact: set[Phrase] = set()
        categories: set[Phrase] = set()
        parts: set[Phrase] = set()
        keys: set[Phrase] = set()
        for item in items:
            pairs = item.get("attributes") or []
            values = {words(value or "") for _, value in pairs}
            levels = {words(level or "") for level in item.get("category") or []}
            keys |= {words(key) for key, _ in pairs}
            categories |= levels
            exact |= values | levels | {words(item.get("brand") or "")}
            parts |= {(word,) for value in values if len(value) > 1 for word in value if len(word) >= SHORTEST and word not in FILLERS}
        spellings = {phrase: phrase for phrase in exact | parts if _names(phrase) and phrase not in keys}
        for phrase in sorted(categories & spellings.keys()):  # sorted: of two categories that share a guess the first has it, in every run
            for guess in _numbers(phrase):
                if guess not in keys:
                    _add(spellings, guess, phrase)
        return cls(spellings)

    def count(self, text: str) -> int:
        """The distinct entities mentioned in ``text``. From the left, the longest phrase is taken, and its words are not read again."""
        return len(set(self._mentions(words(text))))

    def _mentions(self, text: Phrase) -> Iterator[Phrase]:
        at = 0
        while at < len(text):
            taken = 1
            for length in range(self._longest.get(text[at], 0), 0, -1):
                entity = self._spellings.get(text[at : at + length])
                if entity is not None:
                    yield entity
                    taken = length
                    break
            at += taken


def _names(phrase: Phrase) -> bool:
    """Whether a phrase can name something: more than one character, and not numbers only."""
    return sum(map(len, phrase)) > 1 and not all(word.isnumeric() for word in phrase)


def _numbers(phrase: Phrase) -> list[Phrase]:
    """The phrase with its last word in the other number, as English forms it. Guesses that are no words are never met in a text."""
    *rest, last = phrase
    guesses = [last + "s", last + "es"]
    if last.endswith("y"):
        guesses.append(last[:-1] + "ies")
    if last.endswith("s") and not last.endswith("ss"):
        guesses = [last[:-1]] + [last[:-3] + "y"] * last.endswith("ies") + [last[:-2]] * last.endswith("es")
    return [(*rest, guess) for guess in guesses if len(guess) >= SHORTEST]


def _add(spellings: dict[Phrase, Phrase], guess: Phrase, entity: Phrase) -> None:
    """Let ``guess`` name ``entity``; where it is a value itself ("lamp" beside "Lamps"), the two are one entity."""
    known = spellings.get(guess)
    if known is None or known == guess:
        spellings[guess] = spellings[entity]
