"""Charts, whose names and values are drawn as text."""

from collections.abc import Mapping, Sequence
from typing import Literal

from nicegui import ui

_COLORS = ["#3d6fe0", "#2f9d68", "#c77d0a", "#b5489a", "#5f8ea3", "#a3423f", "#7562c9", "#6b8f1d"]


def draw_chart(
    title: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    kind: Literal["bar", "line"] = "bar",
    is_stacked: bool = False,
) -> None:
    """Draw series of numbers over names."""
    text = {"color": "#7a828c"}
    options = {
        "animation": False,
        "color": _COLORS,
        "textStyle": text,
        "title": {"text": title, "left": "left", "textStyle": {"fontSize": 13, "fontWeight": 500, **text}},
        # Rich text is drawn on the canvas: names of others never become HTML.
        "tooltip": {"trigger": "axis", "renderMode": "richText"},
        "legend": {"bottom": 0, "type": "scroll", "textStyle": text, "show": len(series) > 1},
        "grid": {"left": 8, "right": 12, "top": 44, "bottom": 34 if len(series) > 1 else 8, "containLabel": True},
        "xAxis": {"type": "category", "data": list(names), "axisLabel": {"hideOverlap": True, **text}},
        "yAxis": {"type": "value", "axisLabel": text, "splitLine": {"lineStyle": {"color": "#8883"}}},
        "series": [
            {
                "name": name,
                "type": kind,
                "data": list(values),
                "stack": "all" if is_stacked else None,
                "barMaxWidth": 60,
            }
            for name, values in series.items()
        ],
    }
    chart = ui.echart(options).classes("chart card").style("height:16rem")
    chart.props["role"] = "img"
    chart.props["aria-label"] = describe_chart(title, names, series)


def describe_chart(title: str, names: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> str:
    """Return the sum of each series, for screen readers."""
    sums = ", ".join(f"{name} {sum(value or 0 for value in values):g}" for name, values in list(series.items())[:8])
    return f"{title}, {len(names)} entries: {sums}"[:500]
