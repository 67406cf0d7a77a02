"""Results as a notebook shows them: tables and pictures in HTML that needs no style, script or network.

What must stay true: all text is escaped, since class names and notes may come from elsewhere.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from dasm_ray.config.shown import escaped
from dasm_ray.report.page import draw_few
from dasm_ray.report.table import LEGEND, WORDS, Row, as_cells, cautions
from dasm_ray.store.artifact import Artifact


def table(rows: Sequence[Row], title: str, tested: int | None) -> str:
    """The fair table, the distilled set's row in bold."""
    headings, cells = as_cells(rows)
    sides = ["left" if heading in WORDS else "right" for heading in headings]
    lines = [_line("th", headings, sides, False)]
    lines += [_line("td", of_row, sides, row.name == "distilled") for of_row, row in zip(cells, rows, strict=True)]
    below = "".join(f"<p><small>{_text(line)}</small></p>" for line in (LEGEND, *cautions(rows, tested)))
    return f"<h4>{_text(title)}</h4><table>{''.join(lines)}</table>{below}"


def _line(tag: str, cells: Sequence[str], sides: Sequence[str], is_bold: bool) -> str:
    """A row; a bold one is that of the set itself."""
    weight = ";font-weight:bold" if is_bold else ""
    return (
        "<tr>"
        + "".join(
            f'<{tag} style="text-align:{side}{weight}">{_text(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )
        + "</tr>"
    )


def picture(artifact: Artifact) -> str:
    """Some images of every class, or of the first ones where there are many: a row a class, enlarged."""
    drawn, classes = draw_few(artifact)
    data = base64.b64encode(drawn).decode()
    names = ", ".join(artifact.class_names[:classes])
    says = f"synthetic images, a row a class: {names}"
    return f'<img alt="{_text(says)}" style="max-width:100%" src="data:image/png;base64,{data}"><p>{_text(says)}</p>'


def page(text: str, where: str) -> str:
    """A whole page inside a cell, which reaches nothing around it; ``where`` it lies."""
    return (
        f'<iframe sandbox="allow-scripts" style="width:100%;height:720px;border:1px solid #888" '
        f'title="report" srcdoc="{html.escape(text)}"></iframe><p>{_text(where)}</p>'
    )


def _text(value: object) -> str:
    return html.escape(escaped(str(value), 1000))
