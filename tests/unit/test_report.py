import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from rich.console import Console

from lore_lib.artifacts import Metric
from lore_lib.errors import ArtifactError
from lore_lib.run.report import as_json, gather, print_summary, write_html
from lore_lib.run.stage import STAGES, open_stage
from lore_lib.viz.report import format_cell, format_interval, format_seconds, format_value, summarise_stage

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def run(kit: Any) -> str:
    """A run of two stages whose texts try to break the page."""
    stage = open_stage("00_start_here", "smoke", run="r")
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    stage.save_figure(figure, "first_look", f"caption {HOSTILE}")
    plt.close(figure)
    stage.metric(f"pass@1 {HOSTILE} | naive", 0.5, 0.4, 0.6, n=1234, seeds=(0, 1), note=f"[red]{HOSTILE}")
    stage.count(HOSTILE, 3)
    stage.engine("teacher", "symbolic")
    stage.finish()
    second = open_stage("08_your_vertical", "smoke", run="r")
    for name in second.spec.promises:
        second.path(name).write_text("")
    second.metric("requests per second", 1234.5, n=1)
    second.finish()
    return "r"


class Page(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_needs_nothing_else(run: str, outputs: Path) -> None:
    path = write_html(run)
    assert path == outputs / "r" / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+|<code>.*?</code>", "", text)  # settings name a URL
    assert page.tags.count("img") == 1
    assert "&lt;script&gt;" in text


def test_the_page_says_what_a_reader_must_know(run: str) -> None:
    text = write_html(run).read_text(encoding="utf-8")
    for said in (
        "0.4 to 0.6",
        "1,234",
        "0, 1",
        "teacher &#39;symbolic&#39; stands in for a large teacher model",
        "Not finished in this run",
        "05_grpo",
        "first look",
        "08_your_vertical",
    ):
        assert said in text, said


def test_the_summary_shows_markup_as_text_and_says_where_the_rest_is(run: str) -> None:
    stage = open_stage("02_cot_synthesis", "smoke", run=run)
    for name in stage.spec.promises:
        stage.path(name).write_text("")
    stage.metric(f"teacher accuracy | [red]{HOSTILE}", 0.5, 0.4, 0.6, n=12)
    stage.finish()
    out = io.StringIO()
    print_summary(run, Console(file=out, width=200))
    assert f"[red]{HOSTILE}" in out.getvalue()
    assert "0.500 [0.400, 0.600]" in out.getvalue()
    assert "(n = 12)" in out.getvalue()
    assert "mock: teacher 'symbolic'" in out.getvalue()
    assert "all 3 numbers with their seeds: lore report --run r --json" in out.getvalue()


def test_a_summary_has_a_row_per_system_and_a_column_per_headline(kit: Any) -> None:
    stage = open_stage("00_start_here", "smoke", run="s")
    stage.metric("b | one", 2, n=10)
    stage.metric("a | one", 1, n=10)
    stage.metric("a | two", 3, n=20)
    stage.metric("c | two", 4, n=30)
    summary = summarise_stage(stage.finish(), ("a", "b", "absent"))
    assert summary is not None
    assert (summary.estimators, summary.n) == (("a", "b"), "10 to 20")
    found = {system: [metric and metric.value for metric in metrics] for system, metrics in summary.rows}
    assert found == {"one": [1, 2], "two": [3, None]}
    assert summarise_stage(stage.finish(), ("absent",)) is None
    assert format_cell(None) == ""


def test_a_headline_of_pass_at_k_follows_the_k_of_the_run() -> None:
    headlines = STAGES["04_pass_at_8"].headlines_of({"sampling": {"k": 4}})
    assert headlines == ("pass@1", "vote", "pass@4", "parse rate")
    assert STAGES["06_rair"].headlines_of({}) == STAGES["06_rair"].headlines


def test_json_holds_every_metric(run: str) -> None:
    body = json.loads(as_json(run))
    assert (body["run"], body["profile"], body["seed"]) == ("r", "smoke", 17)
    metric = body["stages"][0]["metrics"][0]
    assert (metric["value"], metric["low"], metric["high"], metric["n"], metric["seeds"]) == (
        0.5,
        0.4,
        0.6,
        1234,
        [0, 1],
    )
    assert any("teacher" in notice for notice in body["mocks"])


def test_a_run_that_is_not_there_is_named(kit: Any, run: str, outputs: Path) -> None:
    with pytest.raises(ArtifactError, match="no run 'demmo'"):
        gather("demmo")
    open_stage("00_start_here", "smoke", run="empty")
    with pytest.raises(ArtifactError, match="no finished stage"):
        gather("empty")
    (outputs / "r" / "00_start_here" / "figures" / "first_look.png").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"first_look\.png has 0 bytes"):
        write_html(run)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1"), (0.84375, "0.8438"), (-0.5, "-0.5"), (123456.7, "123,457"), (1e-7, "1e-07")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.4, "59s"), (59.6, "1m00s"), (130, "2m10s"), (3599.7, "1h00m")]
)
def test_times_are_said_as_people_do(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_no_interval_is_shown_as_nothing() -> None:
    assert format_interval(Metric(name="x", value=1, n=1)) == ""
