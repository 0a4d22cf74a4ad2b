"""Which Windows code page a file is in, told by how the languages that use it are spelled. The same bytes are letters in each of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

WESTERN = "cp1252"
LANGUAGES = {  # code page → the letters beyond ASCII of each language
    WESTERN: {
        "French": "àâæçéèêëîïôœùûüÿ",
        "German": "äöüßé",
        "Spanish": "áéíñóúüç",
        "Catalan": "àáçèéíïòóúü",
        "Portuguese": "àáâãçéêíóôõúü",
        "Italian": "àèéìîòóùú",
        "Nordic": "äåæöøéü",
        "Icelandic": "áéíðóöúýþæ",
        "Dutch": "áäèéêëíïóöúü",
    },
    "cp1250": {
        "Polish": "ąćęłńóśźżé",
        "Czech": "áčďéěíňóřšťúůýž",
        "Slovak": "áäčďéíĺľňóôŕšťúýž",
        "Hungarian": "áéíóöőúüű",
        "Romanian": "ăâîşţ",
        "South Slavic": "čćđšž",
    },
    "cp1254": {"Turkish": "âçğıîöşüûi\u0307"},
    "cp1257": {"Lithuanian": "ąčęėįšųūž", "Latvian": "āčēģīķļņšūž", "Estonian": "äõöüšž"},
}
ENOUGH = 0.9  # of all lines: Windows-1252, and no other code page is looked at
MARGIN = 0.05  # by which another one has to be better
LEAST = 0.5
BETWEEN = "’‘´·–—-\u00ad"  # signs that stand between the letters of a word
SIGNS = BETWEEN + "\u00a0€„…“”•™°²³µ½¼¾§©®«»‹›£¥¿¡×÷±ªº¢‰†"
WORD_SIGN = re.compile(rf"[^\W\d_][^\w\s!-~{re.escape(BETWEEN)}\u00a0]+[^\W\d_]|(?<![mM\d)])[²³]|[^\W\d_][¿¡]|[a-zß-ÿ][ºª²³](?=[^\W\d_])")
RUN = re.compile(r"[^\W\d_a-zA-Z]{3}")
INSIDE = re.compile(r"[a-z][À-ÞŒŠŽŸĀĂĄĆČĎĐĒĖĘĚĞĢĪĮİĶĹĻĽŁŃŅŇŌŐŔŘŚŞŢŤŪŮŰŲŹŻ]")  # a capital behind a small letter


def code_page(lines: Sequence[bytes]) -> str | None:
    """The code page in which most lines are spelled as a language of its own; None where none fits half of them."""
    western = _share(lines, WESTERN)
    if western >= ENOUGH:
        return WESTERN
    best, page = max((_share(lines, page), page) for page in LANGUAGES if page != WESTERN)
    if best > western + MARGIN and best >= LEAST:
        return page
    return WESTERN if western >= LEAST else None


def _share(lines: Sequence[bytes], page: str) -> float:
    """The part of the lines, from 0 to 1, that are words of one language each."""
    return sum(_spelled(line.decode(page, "replace"), page) for line in lines) / len(lines)


def _spelled(line: str, page: str) -> bool:
    strange = {sign for sign in line if not sign.isascii()}
    letters = {part for sign in strange if sign.isalpha() and sign not in "ªºµ" for part in sign.lower()}
    if any(not sign.isalpha() and sign not in SIGNS for sign in strange) or WORD_SIGN.search(line) or INSIDE.search(line):
        return False
    if RUN.search(line):  # another alphabet
        return False
    return any(letters <= set(spelled) for spelled in LANGUAGES[page].values())
