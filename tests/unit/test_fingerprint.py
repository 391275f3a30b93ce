"""The bundled `apparel_home` never changes by accident: lore-nano was pretrained on exactly this world.

The hashes in `tests/cases/apparel_home.json` were taken before rules and vocabularies became data.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest

from lore_lib.artifacts import project_root
from lore_lib.config import load_config
from lore_lib.training.nano import Corpus
from lore_lib.vertical.definition import Vertical
from lore_lib.vertical.rules import verdict
from lore_lib.vertical.schema import Demand
from lore_lib.vertical.tables import load_tables

EXPECTED = json.loads((project_root() / "tests/cases/apparel_home.json").read_text(encoding="utf-8"))
VERDICT_FIELDS = ("dimension", "demanded", "found", "level")
"""What a verdict held when the hashes were taken; the fired rule and its reason came later."""


def digest(parts: Iterable[object]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes) else str(part).encode())
        sha.update(b"\0")
    return sha.hexdigest()


def old_path(text: str) -> str:
    return json.dumps([{name: step[name] for name in VERDICT_FIELDS} for step in json.loads(text)])


@pytest.mark.parametrize("profile", ["smoke", "demo"])
def test_the_tables_are_the_same_byte_for_byte(vertical: Vertical, profile: str) -> None:
    tables = load_tables(vertical, load_config(profile).world, 17)
    tables["pairs"]["path"] = tables["pairs"].path.map(old_path)
    found = {
        name: digest([*table.columns, *itertools.chain(*table.itertuples(index=False))])
        for name, table in tables.items()
    }
    assert found == EXPECTED["tables"][profile]


ITEMS: dict[str, list[dict[str, str]]] = {
    "category": [{"category": c} for c in ("dress", "gown", "skirt", "shirt", "sheet", "pillow", "hat")],
    "color": [{"color": c} for c in ("navy", "azure", "crimson", "coral", "salmon", "blue", "beige")],
    "material": [
        *({"material": m} for m in ("linen", "ramie", "silk", "satin", "leather", "cotton", "hemp")),
        *({"material": "cotton", "material_share": str(s)} for s in (0, 40, 49, 50, 89, 90, 94, 95, 100)),
        {"material": "linen", "material_share": "30"},
    ],
    "audience": [{"audience": a} for a in ("women", "men", "teens", "kids", "baby", "unisex", "pets")],
    "brand": [{"brand": b} for b in ("Aurelo", "Relo", "Borvik", "Vikka", "Moreto", "Dunmore", "Nobody")],
    "style": [{"style": s} for s in ("minimalist", "vintage", "street", "other")],
    "price": [{"price": str(p)} for p in (*range(1, 200), "32.99", "33.01", "44.0", "55.5")],
}  # fmt: skip


def test_every_verdict_is_the_same(vertical: Vertical) -> None:
    def verdicts() -> Iterable[Any]:
        for dimension, items in ITEMS.items():
            for value in vertical.values(dimension):
                for item, negated, rules in itertools.product([{}, *items], (False, True), (False, True)):
                    found = verdict(vertical, Demand(dimension, value, value, negated), item, rules)
                    yield tuple(getattr(found, name) for name in VERDICT_FIELDS)

    assert digest(verdicts()) == EXPECTED["verdicts"]


def test_the_pretraining_corpus_is_the_same(vertical: Vertical) -> None:
    corpus = Corpus(vertical, 1_000_000, 17)
    texts = ("".join(text for text, _ in corpus.segments(i)) for i in range(0, 240_000, 1000))
    assert digest(texts) == EXPECTED["corpus"]
