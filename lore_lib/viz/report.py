"""One self-contained HTML page for a run: results with intervals, then a section per stage."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from lore_lib.artifacts import Manifest, Metric


@dataclass(frozen=True)
class StageSection:
    """What the page says about one stage."""

    manifest: Manifest
    shows: str  # one line
    figures: Sequence[Path]  # PNG files; a Description inside one is its caption
    mocks: Sequence[str]  # sentences about engines that stand in for a large model


@dataclass(frozen=True)
class Figure:
    """A picture ready to be put in the page."""

    title: str
    caption: str
    data: str  # base64 of the PNG


def format_value(value: float) -> str:
    """Four significant digits, no exponent for everyday sizes.

    >>> format_value(0.84375), format_value(1234.5), format_value(3.0)
    ('0.8438', '1,234', '3')
    """
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_interval(metric: Metric) -> str:
    """The interval as "low to high"; "" when the metric has none."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{format_value(metric.low)} to {format_value(metric.high)}"


def format_seconds(seconds: float) -> str:
    """Seconds as people say them.

    >>> format_seconds(8.4), format_seconds(130), format_seconds(7260)
    ('8s', '2m10s', '2h01m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def render_report(sections: Sequence[StageSection], missing: Sequence[str] = ()) -> str:
    """The page as text; every value is escaped, every figure inlined.

    Args:
        sections: the finished stages of one run, in order; at least one.
        missing: names of stages that have not finished.
    """
    environment = Environment(
        loader=PackageLoader("lore_lib.viz", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"value": format_value, "interval": format_interval, "duration": format_seconds}
    return environment.get_template("report.html.j2").render(
        first=sections[0].manifest,
        sections=sections,
        figures={section.manifest.stage: [_figure(path) for path in section.figures] for section in sections},
        mocks=sorted({notice for section in sections for notice in section.mocks}),
        missing=missing,
        seconds=sum(section.manifest.seconds for section in sections),
        peak_memory_mib=max(section.manifest.peak_memory_mib for section in sections),
    )


def _figure(path: Path) -> Figure:
    with Image.open(path) as image:
        caption = str(image.info.get("Description", ""))
    title = path.stem.replace("_", " ")
    return Figure(title, caption, base64.b64encode(path.read_bytes()).decode("ascii"))
