"""One self-contained HTML page for a run: results with intervals, then a section per stage."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lore_lib.artifacts import Manifest, Metric
from lore_lib.viz.pages import PAGES


@dataclass(frozen=True)
class StageSection:
    """What the page says about one stage."""

    manifest: Manifest
    shows: str  # one line
    headlines: Sequence[str]  # estimators shown first
    figures: Sequence[Path]  # PNG files; a Description inside one is its caption
    mocks: Sequence[str]  # sentences about engines that stand in for a large model


@dataclass(frozen=True)
class Figure:
    """A picture ready to be put in the page."""

    title: str
    caption: str
    data: str  # base64 of the PNG


@dataclass(frozen=True)
class Summary:
    """What one stage found, in short: a row for each system, a column for each headline estimator."""

    stage: str
    n: str  # units behind the numbers: "400", or "19 to 400" where they differ
    estimators: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Metric | None, ...]], ...]  # system -> its metric by estimator


def summarise_stage(manifest: Manifest, headlines: Sequence[str]) -> Summary | None:
    """The headline metrics of a stage, systems in the order of recording; None when it recorded none of them.

    A metric's name is "<estimator> | <system>".
    """
    found: dict[str, dict[str, Metric]] = {}
    for metric in manifest.metrics:
        estimator, _, system = metric.name.partition(" | ")
        if estimator in headlines:
            found.setdefault(system, {})[estimator] = metric
    if not found:
        return None
    estimators = tuple(name for name in headlines if any(name in of for of in found.values()))
    rows = tuple((system, tuple(of.get(name) for name in estimators)) for system, of in found.items())
    units = [metric.n for of in found.values() for metric in of.values()]
    n = f"{min(units):,}" if min(units) == max(units) else f"{min(units):,} to {max(units):,}"
    return Summary(manifest.stage, n, estimators, rows)


def format_cell(metric: Metric | None) -> str:
    """A value and its interval as a summary shows them, three digits each: "0.769 [0.734, 0.803]".

    >>> format_cell(Metric(name="pass@1", value=0.76875, low=0.7344, high=0.8028, n=400))
    '0.769 [0.734, 0.803]'
    """
    if metric is None:
        return ""
    if metric.low is None or metric.high is None:
        return _short(metric.value)
    return f"{_short(metric.value)} [{_short(metric.low)}, {_short(metric.high)}]"


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


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
    summaries = [summarise_stage(section.manifest, section.headlines) for section in sections]
    return _TEMPLATE.render(
        first=sections[0].manifest,
        sections=sections,
        summaries=[summary for summary in summaries if summary],
        figures={section.manifest.stage: [_figure(path) for path in section.figures] for section in sections},
        mocks=sorted({notice for section in sections for notice in section.mocks}),
        missing=missing,
        seconds=sum(section.manifest.seconds for section in sections),
        peak_memory_mib=max(section.manifest.peak_memory_mib for section in sections),
    )


PAGES.filters |= {
    "value": format_value,
    "interval": format_interval,
    "duration": format_seconds,
    "cell": format_cell,
}
_TEMPLATE = PAGES.get_template("report.html.j2")


def _figure(path: Path) -> Figure:
    with Image.open(path) as image:
        caption = str(image.info.get("Description", ""))
    title = path.stem.replace("_", " ")
    return Figure(title, caption, base64.b64encode(path.read_bytes()).decode("ascii"))
