"""Files in the code pages of Windows: which one is taken, and that it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from moon_ops.lake import rows
from moon_ops.lake.layout import Refusals
from moon_ops.lake.reading import encoding

FRENCH = (
    "Chaise de cuisine en chêne|Tasse à café blanche|Lampadaire en métal doré|Canapé trois places|Théière émaillée|Nappe brodée à la main|"
    "Crêpière antiadhésive|Couverture d’été légère|Étagère à épices"
)
TITLES = {
    "French": (FRENCH, "cp1252"),
    "German": ("|".join(["Schüssel – „blau“", *["Stühle für 5 €"] * 6]), "cp1252"),
    "Spanish": ("Lámpara de pie|Sillón cómodo|Cojín de algodón|Niño pequeño|¿Qué es?|Mesa de jardín 3 m²", "cp1252"),
    "Portuguese": ("Cadeira de escritório|Colchão macio|Almofadões|SÃO PAULO|Lençóis de algodão", "cp1252"),
    "several": ("Stühle für 5 €|Théière émaillée|Cojín de algodón|Blåbær|Tè alla città", "cp1252"),
    "a hard space": ("Prix\u00a0: 5\u00a0€|L’œuf|Cœur d’été", "cp1252"),
    "Polish": ("Krzesło drewniane|Stół kuchenny z szufladą|Łóżko małżeńskie|Lampa stojąca|Ręcznik kąpielowy", "cp1250"),
    "Czech": ("Židle dřevěná|Stůl kuchyňský|Postel dvoulůžková|Skříň bílá|Křeslo dětské červené", "cp1250"),
    "Hungarian": ("Fenyő asztal|Konyhai szék|Fürdőszobai tükör|Kék szőnyeg|Gyűrű", "cp1250"),
    "Turkish": ("Ahşap sandalye|Mutfak masası|Çocuk yatağı|Kırmızı halı|Işıklı ayna", "cp1254"),
    "Russian": ("Красивая настольная лампа из дерева|Стол кухонный|Кровать двуспальная белая", "cp1251"),
    "Greek": ("Ξύλινη καρέκλα κουζίνας|Τραπέζι κουζίνας από ξύλο|Κόκκινο χαλί σαλονιού", "cp1253"),
}


@pytest.mark.parametrize("language", TITLES)
def test_titles_come_in_as_they_were_written_and_the_guess_is_said(tmp_path: Path, language: str) -> None:
    titles, page = TITLES[language]
    lines = "".join(f"{n};{title}\n" for n, title in enumerate(titles.split("|"), 1))
    (tmp_path / "items.csv").write_bytes(f"item_id;title\n{lines}".encode(page))
    refusals = Refusals()
    assert rows.read(tmp_path, "items", refusals)["title"].to_pylist() == titles.split("|")
    name = encoding.NAMES[page]
    assert refusals.contents["items"].said == [f"CSV, semicolon between cells, {name}"]
    assert refusals.contents["items"].notes == [
        f"items.csv: is not UTF-8 and was read as {name}; if letters are wrong, name its encoding with --encoding"
    ]


@pytest.mark.parametrize("page", ["cp850", "cp775", "mac_roman"])
def test_code_pages_of_dos_are_not_guessed(tmp_path: Path, page: str) -> None:
    (tmp_path / "items.csv").write_bytes("item_id;title\n1;Stühle für Gärten\n2;Schüssel, größer\n".encode(page))
    refusals = Refusals()
    assert rows.read(tmp_path, "items", refusals).num_rows == 0
    assert all("name its encoding" in row["reason"] for row in refusals.rows)
