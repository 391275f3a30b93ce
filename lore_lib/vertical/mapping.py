"""The section ``tables`` of a vertical's file: which of a team's own files and columns hold what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lore_lib.vertical.source import Contradictions, Problem

SKIP = "skip"
"""In place of a label: pairs of this grade are left out, and counted."""

Name = Annotated[str, Field(min_length=1)]


def grade_text(grade: object) -> str:
    """A grade as text; a whole number is the same grade however it is written.

    >>> grade_text(3), grade_text("3.0"), grade_text(" good ")
    ('3', '3', 'good')
    """
    if isinstance(grade, float) and grade.is_integer():
        grade = int(grade)
    text = str(grade).strip()
    whole, _, decimals = text.partition(".")
    digits = whole.removeprefix("-")
    return whole if digits.isdecimal() and decimals and not decimals.strip("0") else text


def _grades(labels: Any) -> Any:
    """Keys as texts, since YAML reads the grade ``3`` as a number."""
    if not isinstance(labels, Mapping):
        return labels
    problems = []
    for grade in labels:
        if grade is None or isinstance(grade, bool):
            said = "YAML reads this grade as neither text nor number; write it in quotes, as your file has it"
            problems.append(Problem((str(grade),), said))
    texts = [grade_text(grade) for grade in labels]
    for text in (text for text, times in Counter(texts).items() if times > 1):
        problems.append(Problem((), f"grade {text!r} stands twice, once in quotes; keep one"))
    if problems:
        raise Contradictions(problems)
    return dict(zip(texts, labels.values(), strict=True))


def _inside(file: str) -> str:
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise ValueError("the file must lie inside the vertical's folder, or a run would not see it change")
    return file


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ItemColumns(_Section):
    """Column of the items -> your column."""

    item_id: Name
    """The key."""
    title: Name
    """Title of the item; every row needs one."""
    cpv: Name | dict[Name, Name] | None = None
    """Attribute -> your column, such as {color: colour_name}; or one column that holds JSON objects."""
    skus: Name | None = None
    """Variants, as a JSON list."""
    shop: Name | None = None
    """Name of the shop."""
    price: Name | None = None
    """A number of at least 0, without currency; 0 where it is not known."""
    selling_points: Name | None = None
    """What the merchant explains: "surface (meaning); ..."."""
    industry: Name | None = None
    """Industry of the category."""
    picture: Name | None = None
    """Path beside the file, bytes or base64 of a PNG or JPEG."""


class QueryColumns(_Section):
    """Column of the queries -> your column."""

    query_id: Name
    """The key."""
    query: Name
    """What the shopper wrote."""
    intent: Name | None = None
    """A key of ``INTENTS``; "plain" where not mapped."""
    frequency: Name | None = None
    """How often it is asked; 1 where not mapped."""
    split: Name | None = None
    """train, dev or test; by a hash of the query where not mapped."""


class PairColumns(_Section):
    """Column of the pairs -> your column."""

    item_id: Name
    """The item judged."""
    label: Name
    """Your grade."""
    query_id: Name | None = None
    """The query; needed beside a table of queries."""
    query: Name | None = None
    """Text of the query; needed without a table of queries, whose place it takes."""
    pair_id: Name | None = None
    """The key; made of query and item where not mapped."""
    mismatch: Name | None = None
    """The dimension that failed, of pairs graded L2; empty elsewhere."""
    kind: Name | None = None
    """What the pair needs: plain, knowledge, visual or boundary."""
    split: Name | None = None
    """train, dev or test of the query, without a table of queries."""


class ClickColumns(_Section):
    """Column of the click log -> your column."""

    query_id: Name
    """The query."""
    item_id: Name
    """The item."""
    clicks: Name
    """How many."""


class _File(_Section):
    file: Annotated[Name, AfterValidator(_inside)]
    """Path inside the vertical's folder; .csv, .tsv, .jsonl or .ndjson (each also .gz), .parquet, .arrow."""


class ItemsFile(_File):
    """The file of the items."""

    columns: ItemColumns
    """Which of its columns hold what."""


class QueriesFile(_File):
    """The file of the queries."""

    columns: QueryColumns
    """Which of its columns hold what."""


class PairsFile(_File):
    """The file of the pairs."""

    columns: PairColumns
    """Which of its columns hold what."""
    labels: Annotated[dict[str, Literal["L1", "L2", "L3", "L4", "skip"]], BeforeValidator(_grades)] = {
        "L1": "L1",
        "L2": "L2",
        "L3": "L3",
        "L4": "L4",
    }
    """Your grade -> L1 to L4, or skip for pairs to leave out; by default the grades are L1 to L4."""


class ClicksFile(_File):
    """The file of the clicks."""

    columns: ClickColumns
    """Which of its columns hold what."""


class OwnTables(_Section):
    """Your own tables: the file of each, and which of its columns hold what."""

    items: ItemsFile
    """Your catalogue."""
    queries: QueriesFile | None = None
    """Your queries; without them every text that the pairs hold becomes one."""
    pairs: PairsFile
    """Your judgements, a query and an item a row."""
    clicks: ClicksFile | None = None
    """Your click log, if there is one."""

    @model_validator(mode="after")
    def _queries_are_known(self) -> OwnTables:
        if problems := list(self._query_problems()):
            raise Contradictions(problems)
        return self

    def _query_problems(self) -> Iterator[Problem]:
        columns = self.pairs.columns
        where = ("pairs", "columns")
        if self.queries is None and columns.query is None:
            yield Problem(where, "column 'query' is not mapped; map it, or add the table 'queries'")
        if self.queries is not None and columns.query_id is None:
            yield Problem(where, "column 'query_id' is not mapped; a pair needs its query")
        for column in ("query", "split") if self.queries is not None else ():
            if getattr(columns, column) is not None:
                yield Problem((*where, column), f"map {column!r} under 'queries', which are there")
        if self.clicks is not None and self.queries is None and columns.query_id is None:
            said = "clicks name queries by their id: map 'query_id' of the pairs, or add the table 'queries'"
            yield Problem(("clicks",), said)
