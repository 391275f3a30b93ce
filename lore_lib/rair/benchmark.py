"""A frozen benchmark: one JSON-lines file, its name, version and checksum, and who may be judged by it.

A row is a pair with all that is known of it, so that the file alone rebuilds prompts, cards and scores.
Answers carry the reference of the benchmark they were given for (``rair-mini/apparel_home@1.0-1f2e3d4c``):
answers to another version are refused, because the same pair id may then be another pair.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from lore_lib.artifacts import atomic_write_bytes, atomic_write_json, project_root, read_jsonl
from lore_lib.errors import ArtifactError, DataError, nearest
from lore_lib.rair.metrics import align
from lore_lib.vertical.contract import Tables, check_tables
from lore_lib.vertical.schema import LABELS, RELEVANT

SUBSETS = ("general", "hard", "visual")
CARD = "card.json"
BUNDLED = "rair-mini"

ROW = (
    *(
        "pair_id",
        "query_id",
        "item_id",
        "subset",
        "query",
        "intent",
        "label",
        "mismatch",
        "dimension",
        "kind",
    ),
    *("reference", "industry", "title", "cpv", "skus", "shop", "price", "selling_points"),
    *("demands", "path", "picture"),
)
"""Fields of a row, in their order. ``dimension`` decides the label, ``reference`` is what the reference
judge said; ``demands`` and ``path`` are "" where nobody knows them; ``picture`` is base64 of PNG or JPEG."""

_ITEM = ("item_id", "title", "cpv", "skus", "shop", "price", "selling_points", "industry", "picture")


@dataclass(frozen=True)
class Benchmark:
    """Pairs to be judged, frozen.

    Attributes:
        name: such as "rair-mini/apparel_home".
        version: of the recipe and its rows.
        rows: columns ``ROW``, pictures as bytes.
    """

    name: str
    version: str
    rows: pd.DataFrame

    @functools.cached_property
    def data(self) -> bytes:
        """The file: one JSON object a line, the same bytes for the same rows."""
        lines = []
        for row in self.rows[list(ROW)].to_dict("records"):
            picture = base64.b64encode(row["picture"]).decode("ascii")
            lines.append(json.dumps(row | {"picture": picture}, ensure_ascii=False) + "\n")
        return "".join(lines).encode()

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def reference(self) -> str:
        """What every answer must carry: name, version, and the start of the checksum."""
        return f"{self.name}@{self.version}-{self.sha256[:8]}"

    def tables(self) -> Tables:
        """The rows as tables of the contract (``data/README.md``), all of the test split, without clicks."""
        rows = self.rows.assign(split="test", frequency=1)
        return check_tables(
            {
                "items": rows[list(_ITEM)].drop_duplicates("item_id", ignore_index=True),
                "queries": rows[
                    ["query_id", "query", "intent", "frequency", "demands", "split"]
                ].drop_duplicates("query_id", ignore_index=True),
                "pairs": rows[
                    ["pair_id", "query_id", "item_id", "label", "mismatch", "path", "kind", "split"]
                ],
                "clicks": pd.DataFrame(columns=["query_id", "item_id", "clicks"]),
            },
            self.name,
        )

    def same_pairs(self, other: Benchmark) -> bool:
        """Whether rows and pixels are equal; PNG files may differ: their compression is Pillow's choice."""
        told = [name for name in ROW if name != "picture"]
        if not self.rows[told].equals(other.rows[told]):
            return False
        couples = zip(self.rows["picture"], other.rows["picture"], strict=True)
        return all(mine == theirs or _pixels(mine) == _pixels(theirs) for mine, theirs in couples)

    def head(self, pairs_per_subset: int) -> Benchmark:
        """The first pairs of each subset, under a version that says so; 0 is the whole."""
        if pairs_per_subset == 0:
            return self
        rows = self.rows[self.rows.groupby("subset").cumcount() < pairs_per_subset].reset_index(drop=True)
        return Benchmark(self.name, f"{self.version}.first{pairs_per_subset}", rows)

    def judged(self, answers: pd.DataFrame) -> pd.DataFrame:
        """Answers beside the gold labels, one row per pair; nothing is dropped and nothing is guessed.

        Args:
            answers: pair_id, label ("" for an answer that could not be read: it counts as wrong in every
                score), benchmark (the reference they were given for).

        Returns:
            As :func:`lore_lib.rair.metrics.align`, with the rows' subset, intent, dimension and industry.

        Raises:
            DataError: answers to another benchmark or version, or without one; pairs missing, repeated or
                unknown; labels that are none. Each with its count and the first ids.
        """
        if "benchmark" not in answers:
            raise DataError(
                f"the answers do not say which benchmark they are for; give each a column 'benchmark' with "
                f"{self.reference!r}, once you know that they are"
            )
        other = answers[answers["benchmark"] != self.reference]
        if len(other):
            raise DataError(
                f"{len(other)} of {len(answers)} answers are for {other['benchmark'].iloc[0]!r}, first "
                f"{other['pair_id'].iloc[0]}; this is {self.reference!r}. Let the system answer its pairs"
            )
        gold = self.rows[["pair_id", "query_id", "item_id", "label", *SLICES]]
        return align(answers[["pair_id", "label"]], gold)

    def save(self, path: Path) -> Path:
        """Write the file, whole or not at all."""
        return atomic_write_bytes(path, self.data)

    def counts(self) -> dict[str, Any]:
        """Pairs, queries, and pairs by subset."""
        sizes = self.rows["subset"].value_counts()
        return {
            "pairs": len(self.rows),
            "queries": int(self.rows["query_id"].nunique()),
            "subsets": {name: int(sizes.get(name, 0)) for name in SUBSETS},
        }


def _pixels(picture: bytes) -> tuple[tuple[int, int], bytes]:
    if not picture:
        return (0, 0), b""
    with Image.open(io.BytesIO(picture)) as image:
        return image.size, image.convert("RGB").tobytes()


SLICES = ("subset", "intent", "dimension", "industry", "kind")
"""Columns by which scores are told apart."""


def benchmarks_folder() -> Path:
    """Where bundled benchmarks live, one folder each."""
    return project_root() / "data" / "benchmarks"


def save_all(benchmarks: list[Benchmark], folder: Path, recipe: dict[str, Any]) -> Path:
    """Write one file per vertical and the card, last, which names version, recipe and checksums; returns it.

    Raises:
        DataError: nothing to write, benchmarks of different versions, or a folder whose card names other
            verticals, or other rows of the same version: answers to those could be taken for answers to
            these.
    """
    versions = {benchmark.version for benchmark in benchmarks}
    if len(versions) != 1:
        raise DataError(
            f"found {len(versions)} versions ({', '.join(sorted(versions))}); one folder holds one"
        )
    if (folder / CARD).is_file():
        _refuse_loss(json.loads((folder / CARD).read_text(encoding="utf-8")), benchmarks, folder)
    files = {}
    for benchmark in benchmarks:
        name = benchmark.name.rpartition("/")[2]
        path = benchmark.save(folder / f"{name}.jsonl")
        files[name] = {"file": path.name, "sha256": benchmark.sha256, **benchmark.counts()}
    card = {"name": folder.name, "version": versions.pop(), "recipe": recipe, "verticals": files}
    return atomic_write_json(folder / CARD, card)


def _refuse_loss(card: dict[str, Any], benchmarks: list[Benchmark], folder: Path) -> None:
    made = {benchmark.name.rpartition("/")[2]: benchmark for benchmark in benchmarks}
    if lost := [name for name in card["verticals"] if name not in made]:
        raise DataError(
            f"{folder / CARD} holds {', '.join(lost)} as well and would lose it; build all its verticals in "
            "one call, or into another folder with --out"
        )
    for name, entry in card["verticals"].items():
        if made[name].version == card["version"] and made[name].sha256 != entry["sha256"]:
            raise DataError(
                f"{folder} holds {name} at version {card['version']} already, with other rows; raise the "
                "version (--version), or delete the folder if nobody has answered it"
            )


def bundled_verticals(name: str = BUNDLED) -> list[str]:
    """Verticals that a bundled benchmark has; none where there is no such benchmark."""
    card = benchmarks_folder() / name / CARD
    return list(json.loads(card.read_text(encoding="utf-8"))["verticals"]) if card.is_file() else []


def load_benchmark(reference: str) -> Benchmark:
    """A bundled benchmark by name, such as "rair-mini/apparel_home", with or without "@version".

    Raises:
        DataError: no such benchmark, vertical or version.
        ArtifactError: the file is not the one the card was written for.
    """
    path, _, version = reference.partition("@")
    name, _, vertical = path.partition("/")
    folder = benchmarks_folder() / name
    if not (folder / CARD).is_file():
        found = sorted(card.parent.name for card in benchmarks_folder().glob(f"*/{CARD}"))
        raise DataError(f"no benchmark {name!r} in {benchmarks_folder()}; {nearest(name, found)}")
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    if vertical not in card["verticals"]:
        raise DataError(f"{name} has no vertical {vertical!r}; {nearest(vertical, card['verticals'])}")
    entry = card["verticals"][vertical]
    known = Benchmark(path, card["version"], read_rows(folder / entry["file"]))
    if known.sha256 != entry["sha256"]:
        raise ArtifactError(
            f"{folder / entry['file']} has sha256 {known.sha256[:12]}, its card says "
            f"{entry['sha256'][:12]}; restore it from the repository, or build it: lore build-benchmark"
        )
    if version and version not in (known.version, known.reference.partition("@")[2]):
        raise DataError(f"{path} is at version {known.reference.partition('@')[2]}, not {version}")
    return known


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a benchmark's file.

    Raises:
        ArtifactError: absent, or not JSON lines.
        DataError: fields missing, or pairs repeated.
    """
    rows = pd.DataFrame(read_jsonl(path))
    missing = [name for name in ROW if name not in rows]
    if missing:
        raise DataError(f"{path}: {len(rows)} rows lack the fields {', '.join(missing)}")
    if rows["pair_id"].duplicated().any():
        raise DataError(f"{path}: pair {rows.loc[rows.pair_id.duplicated(), 'pair_id'].iloc[0]} stands twice")
    return rows[list(ROW)].assign(picture=[base64.b64decode(text) for text in rows["picture"]])


def read_answers(path: Path) -> pd.DataFrame:
    """Answers of any system from JSON lines, CSV or Parquet: pair_id, label, benchmark, all as text.

    Raises:
        ArtifactError: absent, or of another format.
        DataError: no column pair_id or label.
    """
    if path.suffix == ".jsonl":
        answers = pd.DataFrame(read_jsonl(path))
    elif path.suffix in (".csv", ".parquet") and path.is_file():
        answers = pd.read_csv(path, dtype=str) if path.suffix == ".csv" else pd.read_parquet(path)
    else:
        raise ArtifactError(f"no answers at {path}; give a .jsonl, .csv or .parquet file that exists")
    missing = {"pair_id", "label"} - set(answers)
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(sorted(missing))} (found {', '.join(map(str, answers))}); give "
            'pair_id, label (L1 to L4, "" where the answer could not be read) and benchmark'
        )
    texts = [name for name in ("pair_id", "label", "benchmark") if name in answers]
    return answers.assign(**{name: answers[name].fillna("").astype(str) for name in texts})


def count_benchmark(rows: pd.DataFrame) -> pd.DataFrame:
    """Pairs, queries and share of relevant labels per subset, in the order general, hard, visual.

    Returns:
        subset, pairs, queries, relevant_share, and one count column per label.
    """
    grouped = rows.assign(relevant=rows["label"].isin(RELEVANT)).groupby("subset")
    table = grouped.agg(
        pairs=("pair_id", "size"), queries=("query_id", "nunique"), relevant_share=("relevant", "mean")
    )
    labels = pd.crosstab(rows["subset"], rows["label"]).reindex(columns=list(LABELS), fill_value=0)
    return table.join(labels).reindex([name for name in SUBSETS if name in table.index]).reset_index()
