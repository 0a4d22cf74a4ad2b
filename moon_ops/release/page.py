"""One HTML page with all its pictures inside: no file beside it, no script, so that it opens in MLflow's viewer and from a mail."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moon_ops.files import write_text

PAGE, LAST = "report.html", "Made of"  # LAST: the section before which others are put
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#222;background:#fff;max-width:76rem;margin:1.5rem auto;padding:0 1rem}
h1{font-size:1.7rem;margin:0}h2{font-size:1.2rem;margin:2.2rem 0 .5rem;border-bottom:1px solid #ddd;padding-bottom:.2rem}
h3{font-size:1rem;margin:1.4rem 0 .4rem}p{margin:.4rem 0;max-width:64rem}code{background:#eef0f2;padding:.1rem .3rem;border-radius:3px}
table{border-collapse:collapse;margin:.4rem 0}th,td{text-align:left;padding:.28rem .8rem .28rem 0;vertical-align:top}
th{font-weight:600;border-bottom:1px solid #bbb}td{border-bottom:1px solid #eee}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
img{max-width:100%}.head{border-left:.6rem solid;padding:.8rem 1.1rem;border-radius:4px}.note{color:#555}
.passed{background:#e7f4ec;border-color:#1e7d46}.failed{background:#fbe9e7;border-color:#b3261e}.little{background:#fdf1dd;border-color:#b26a00}
.badge{font-weight:600;white-space:nowrap}.badge.passed{color:#1e7d46}.badge.failed{color:#b3261e}.badge.little{color:#8a5200}
.badge.passed,.badge.failed,.badge.little{background:none}
.row{display:flex;gap:1rem;border-top:1px solid #ddd;padding:.7rem 0;align-items:flex-start}.row .asked{width:11rem;flex:none}
.line{display:flex;gap:.4rem;align-items:flex-start;margin-bottom:.4rem}.line b{width:5rem;flex:none;font-size:.8rem;padding-top:2.6rem}
figure{box-sizing:border-box;margin:0;width:7.6rem;flex:none;border:2px solid #ddd;border-radius:4px;
font-size:.72rem;line-height:1.25;background:#fff}
figure div{height:7rem;display:flex;align-items:center;justify-content:center;overflow:hidden}figure img{max-height:7rem;max-width:100%}
figure div.words{padding:.3rem;color:#444;font-size:.85rem;text-align:center}
figcaption{margin:.15rem .3rem;height:2.5em;overflow:hidden;color:#555;display:-webkit-box;-webkit-line-clamp:2;-webkit-box-orient:vertical}
figure.hit{border:4px solid #1e7d46}figure.small{width:4.4rem}
figure.small div{height:4rem}figure.small img{max-height:4rem}.asked figure{width:10rem;margin-bottom:.3rem}
.figures{columns:24rem;font-size:.8rem}.figures table{width:100%}.hashes td{font-size:.75rem;font-family:monospace;word-break:break-all}
@media(max-width:58rem){body{font-size:13px}td.n,th.n{white-space:normal}th,td{padding-right:.5rem}h1{font-size:1.35rem}
.row{flex-direction:column;gap:.5rem;align-items:stretch}.row .asked{width:auto;display:flex;gap:.8rem}.line b{width:4rem;padding-top:1rem}
.line figure{flex:1 1 0;min-width:0;max-width:7.6rem}
.line figure.small{flex:none;width:2.6rem}figure.small div{height:2.4rem}}
"""


@dataclass(frozen=True)
class Report:
    """A page: what stands at its head, sections by title (HTML), and the PNG files that are written beside it."""

    title: str
    head: str
    sections: tuple[tuple[str, str], ...]
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    def plus(self, title: str, body: str, pictures: Mapping[str, bytes]) -> Report:
        """The same with one more section, before what the release is made of."""
        at = next((n for n, (name, _) in enumerate(self.sections) if name == LAST), len(self.sections))
        sections = (*self.sections[:at], (title, body), *self.sections[at:])
        return replace(self, sections=sections, pictures={**self.pictures, **pictures})

    def html(self) -> str:
        """The whole page."""
        shown = "".join(f"<h2>{text(name)}</h2>{body}\n" for name, body in self.sections if body)
        head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(self.title)}</title><style>{STYLE}</style></head>'
        return f"{head}<body>{self.head}\n{shown}</body></html>\n"

    def write(self, place: Path) -> None:
        """The page and its PNG files, in a directory that need not be there."""
        place.mkdir(parents=True, exist_ok=True)
        for name, content in self.pictures.items():
            (place / name).write_bytes(content)
        write_text(place / PAGE, self.html())


def text(value: object) -> str:
    """As it may stand between tags and in quotes."""
    return html.escape(str(value))


def number(value: Any, *, sign: bool = False) -> str:
    """A figure as people read it; empty for none, and in words for what is not a number."""
    if value is None or not isinstance(value, (int, float)):
        return "" if value is None else text(value)
    if not math.isfinite(value):
        return "not measured"
    if value == int(value) and abs(value) >= 10:
        return f"{value:+,.0f}" if sign else f"{value:,.0f}"
    return f"{value:+.4f}" if sign else f"{value:.4f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), kind: str = "") -> str:
    """Rows of HTML cells; ``numbers`` are the columns to align at the right."""
    marks = [' class="n"' if n in numbers else "" for n in range(max(len(head), 9))]
    top = "".join(f"<th{marks[n]}>{text(name)}</th>" for n, name in enumerate(head))
    body = "".join("<tr>" + "".join(f"<td{marks[n]}>{cell}</td>" for n, cell in enumerate(row)) + "</tr>" for row in rows)
    return f'<table class="{kind}">{f"<tr>{top}</tr>" if head else ""}{body}</table>' if body else ""


def picture(content: bytes, alt: str) -> str:
    """A PNG or JPEG inside the page."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f'<img src="data:image/{kind};base64,{base64.b64encode(content).decode()}" alt="{text(alt)}">'


def tile(content: bytes | None, words: str, *, hit: bool = False, kind: str = "") -> str:
    """A small picture with a line under it; in words where there is no picture."""
    inside = f"<div>{picture(content, words)}</div>" if content is not None else f'<div class="words">{text(words)}</div>'
    caption = f"<figcaption>{text(words)}</figcaption>" if content is not None and words and not kind else ""
    return f'<figure class="{"hit " if hit else ""}{kind}">{inside}{caption}</figure>'
