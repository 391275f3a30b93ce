"""A team's own tables, without a world and without pictures, go through notebooks 01, 02 and 08."""

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest

from lore_lib.artifacts import read_manifest, read_parquet
from lore_lib.run.runner import run_stages
from lore_lib.vertical.authoring import TEMPLATE

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(600)]

TABLES = """
tables:
  items:
    file: products.csv
    columns: {item_id: sku, title: name, price: eur, cpv: {color: shade}}
  pairs:
    file: ratings.csv
    columns: {query: search, item_id: sku, label: grade, split: part}
    labels: {3: L4, 2: L3, 1: L2, 0: L1, "?": skip}
"""


@pytest.fixture
def shop(root: Path, tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a vertical of own tables beside a bundled one; every item answers several queries."""
    project = tmp_path / "project"
    home = project / "data" / "verticals" / "shop"
    home.mkdir(parents=True)
    for shared in ("notebooks", "lore_lib", "pyproject.toml", "data/models", "data/rules"):
        (project / shared).symlink_to(root / shared)
    (home.parent / "apparel_home").symlink_to(root / "data" / "verticals" / "apparel_home")
    text = TEMPLATE.read_text(encoding="utf-8")
    start, end = text.index("# Tables of your own: "), text.index("# What shoppers write")
    text = text[:start] + text[end:] + TABLES
    (home / "vertical.yaml").write_text(
        text.replace(text[text.index("name:") :].splitlines()[0], "name: shop")
    )
    kinds = itertools.product(("pan", "wok", "bowl"), ("navy", "coral", ""))
    products = [(n, f"{kind} no {n}", 9.5 + n, shade) for n, (kind, shade) in enumerate(kinds)]
    pd.DataFrame(products, columns=["sku", "name", "eur", "shade"]).to_csv(home / "products.csv", index=False)
    asked = itertools.product(("red", "big", "my"), ("train", "dev", "test"), range(9))
    rated = [(f"{word} {part} pan", n, "?0123"[(n + len(part)) % 5], part) for word, part, n in asked]
    columns = ["search", "sku", "grade", "part"]
    pd.DataFrame(rated, columns=columns).to_csv(home / "ratings.csv", index=False)
    monkeypatch.setenv("LORE_ROOT", str(project))
    return outputs / "shop"


def test_own_tables_run_through_the_notebooks_that_read_them(shop: Path) -> None:
    run_stages("smoke", "shop", "shop", only=("01_features", "02_cot_synthesis", "08_your_vertical"))
    features = shop / "01_features"
    skipped = read_parquet(features / "skipped.parquet")
    assert set(skipped.field) == {"grade"}
    assert set(skipped.reason) == {"grade '?' is skipped"}
    assert skipped["where"].str.fullmatch(r"ratings\.csv:\d+").all()
    manifest = read_manifest(features)
    assert manifest.counts["skipped"] == len(skipped) > 10
    assert manifest.counts["pairs"] == 81 - len(skipped)
    assert manifest.counts["captions abstained"] == 9
    scored = {metric.name for metric in manifest.metrics if metric.name.startswith("pass@1")}
    assert scored
    assert all("all pairs" in name for name in scored)  # nobody knows the kinds
    prompts = read_parquet(features / "prompts.parquet")
    assert not prompts.prompt.str.contains("picture:").any()
    assert json.loads(read_parquet(features / "items.parquet").cpv[0]) == {"color": "navy"}
    synthesis = shop / "02_cot_synthesis"
    assert not read_parquet(synthesis / "traces-progressive.parquet").kept.any()  # nobody explains the words
    taught = set(read_parquet(synthesis / "students.parquet").system)
    assert {"naive", "on-policy"} <= taught
    assert "progressive" not in taught
    assert read_manifest(shop / "08_your_vertical").metrics
