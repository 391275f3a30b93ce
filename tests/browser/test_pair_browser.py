"""The pair browser in a real JupyterLab, over a seller's title that is markup and script."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from lore_lib.artifacts import write_parquet
from lore_lib.run.runner import KERNEL, install_kernel

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HOSTILE = "<img src=x onerror=alert(1)> silk tote"
CELL = """\
import pandas as pd
from lore_lib.viz.widgets import pair_browser
pair_browser({name: pd.read_parquet(f"{name}.parquet") for name in ("items", "queries", "pairs")})
"""


@pytest.fixture
def lab(tmp_path: Path, world_tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    """URL of a JupyterLab over a folder with one notebook; it ends with the test."""
    install_kernel()
    first = world_tables["pairs"].item_id.iloc[0]
    items = world_tables["items"]
    tables = {
        **world_tables,
        "items": items.assign(title=items.title.mask(items.item_id == first, HOSTILE)),
    }
    for name in ("items", "queries", "pairs"):
        write_parquet(tables[name], tmp_path / f"{name}.parquet")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    book.metadata["kernelspec"] = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
    nbformat.write(book, tmp_path / "pairs.ipynb")
    log = (tmp_path / "lab.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
         "--port=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"],
        cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        yield _address(server, tmp_path / "lab.log")
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(240):
        if found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()):
            return found[0]
        assert server.poll() is None, log.read_text()
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


def test_a_reader_clicks_through_pairs_and_no_title_runs(
    lab: str, page: Page, world_tables: dict[str, pd.DataFrame]
) -> None:
    page.goto(f"{lab}lab/tree/pairs.ipynb")
    expect(page.get_by_role("button", name=re.compile(r"\| Idle$"))).to_be_visible(timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    expect(page.get_by_text(HOSTILE)).to_be_visible(timeout=120_000)  # as text, not as an image
    expect(page.get_by_text(f"of {len(world_tables['pairs'])}")).to_be_visible()
    page.get_by_role("button", name="next").click()
    expect(page.locator("input[type=number]")).to_have_value("2")
