"""The HTML report as a browser shows it, with texts that try to break it."""

from typing import Any

import matplotlib.pyplot as plt
import pytest
from playwright.sync_api import Page

from lore_lib.run.report import write_html
from lore_lib.run.stage import open_stage

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def test_the_report_shows_its_figures_and_runs_nothing(kit: Any, page: Page) -> None:
    stage = open_stage("02_cot_synthesis", "smoke", run="r")
    for name in stage.spec.promises:
        stage.path(name).write_text("")
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    stage.save_figure(figure, "line", HOSTILE)
    plt.close(figure)
    stage.metric(f"teacher accuracy | {HOSTILE}", 0.5, 0.4, 0.6, n=12, note=HOSTILE)
    stage.count(HOSTILE, 3)
    stage.finish()

    page.goto(write_html("r").as_uri())
    assert page.evaluate("[...document.images].length") == 1
    assert page.evaluate("document.images[0].decode().then(() => document.images[0].naturalWidth)") > 100
    assert page.get_by_role("row", name=HOSTILE).first.is_visible()
    summary = page.get_by_text("All 1 numbers of this stage")
    summary.click()
    assert page.get_by_role("cell", name="0.4 to 0.6").is_visible()
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0, "the page scrolls sideways"
