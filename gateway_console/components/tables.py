"""Plain tables, whose cells are text."""

from collections.abc import Callable, Sequence

from nicegui import ui


def draw_table(titles: Sequence[str], rows: Sequence[Sequence[str | Callable[[], object]]]) -> None:
    """Draw a table; a cell is a text, or draws itself."""
    with ui.element("div").classes("card").style("overflow-x:auto"), ui.element("table").classes("figures"):
        with ui.element("thead"), ui.element("tr"):
            for title in titles:
                with ui.element("th").props('scope="col"'):
                    ui.label(title)
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for cell in row:
                        with ui.element("td"):
                            ui.label(cell) if isinstance(cell, str) else cell()
