"""Step through judged pairs, and through the chains of thought that teachers wrote about them.

What sellers and shoppers wrote is hostile until proven otherwise. It reaches the page through one template
that escapes every value; pictures are decoded and drawn anew, never passed on.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from ipywidgets import HTML, BoundedIntText, Button, Checkbox, Dropdown, HBox, Label, VBox
from PIL import Image

from lore_lib.errors import DataError, nearest
from lore_lib.features.prompts import Neutral, item_sections
from lore_lib.vertical.schema import DIMENSIONS, Verdict, load_demands
from lore_lib.viz.pages import PAGES

FILTERS = ("split", "kind", "label", "intent")
"""What a reader may choose pairs by."""

SLICED = ("subset", "intent", "dimension", "industry")
"""What a reader may choose judged pairs by."""

ALL = "all"
SIDE = 96
"""Longer side of a shown picture in pixels."""

_TEMPLATE = PAGES.get_template("pair_card.html.j2")
_VERDICTS = PAGES.get_template("verdicts.html.j2")
_TRACES = PAGES.get_template("trace_card.html.j2")


class _AsWritten(Neutral):
    """Seller's text as it came: the card escapes it, and a reader should see what was tried."""

    def __missing__(self, text: str) -> str:
        return text


def pair_card(tables: Mapping[str, pd.DataFrame], pair_id: str) -> str:
    """One pair as HTML with every value escaped: query and demands, item, path, label.

    Demands and path are left out where the tables do not know them (``queries.demands``, ``pairs.path``).

    Args:
        tables: ``pairs``, ``queries`` and ``items``.
        pair_id: which pair.

    Raises:
        DataError: no such pair (the nearest is named), or an item whose ``cpv``, ``skus`` or ``price`` cannot
            be read.
    """
    pair = _row(tables, "pairs", "pair_id", pair_id)
    query = _row(tables, "queries", "query_id", pair["query_id"])
    item = _row(tables, "items", "item_id", pair["item_id"])
    path = [Verdict(**step) for step in json.loads(_text(pair, "path") or "[]")]
    return _TEMPLATE.render(
        pair=pair,
        query=query,
        demands=load_demands(_text(query, "demands") or "[]"),
        told=item_sections(item, None, _AsWritten()),
        picture=_picture(item["picture"]),
        path=path,
        lowest=min((step.level for step in path), default=None),
        titles=DIMENSIONS,
    )


def pair_browser(tables: Mapping[str, pd.DataFrame]) -> VBox:
    """A live browser of pairs: filters by ``FILTERS``, a place to step through, the card of the pair there.

    It needs a running kernel; for readers without one, show a :func:`pair_card` beside it.

    Args:
        tables: ``pairs``, ``queries`` and ``items``.
    """
    intents = tables["queries"].set_index("query_id")["intent"]
    rows = tables["pairs"].assign(intent=lambda pairs: pairs["query_id"].map(intents))
    return _browser(rows, FILTERS, lambda pair_id: pair_card(tables, pair_id))


def verdict_card(
    tables: Mapping[str, pd.DataFrame], answers: pd.DataFrame, pair_id: str, systems: Sequence[str]
) -> str:
    """A pair with what systems said of it side by side: label, whether it is right, reasoning; all escaped.

    Args:
        tables: ``pairs``, ``queries`` and ``items``.
        answers: system, pair_id, label, parse_kind, completion.
        pair_id: which pair.
        systems: which columns, in order.

    Raises:
        DataError: no such pair, or a system without an answer to it.
    """
    rows = answers[answers["pair_id"] == pair_id].to_dict("records")
    said = {row["system"]: row for row in rows}
    if missing := [name for name in systems if name not in said]:
        raise DataError(f"{missing[0]!r} has no answer to {pair_id}; {nearest(missing[0], said)}")
    gold = _row(tables, "pairs", "pair_id", pair_id)["label"]
    verdicts = [
        {
            "system": name,
            "label": said[name]["label"] or f"unparsable ({said[name]['parse_kind']})",
            "right": said[name]["label"] == gold,
            "reasoning": said[name]["completion"] or "gives no reasons",
        }
        for name in systems
    ]
    return pair_card(tables, pair_id) + _VERDICTS.render(verdicts=verdicts)


def verdict_cards(tables: Mapping[str, pd.DataFrame], answers: pd.DataFrame) -> str:
    """A :func:`verdict_card` for every pair that was answered, each with all systems.

    Args:
        tables: ``pairs``, ``queries`` and ``items``.
        answers: system, pair_id, label, parse_kind, completion.

    Raises:
        DataError: as for one card.
    """
    systems = list(dict.fromkeys(answers["system"]))
    pairs = dict.fromkeys(answers["pair_id"])
    return "<hr>".join(verdict_card(tables, answers, pair_id, systems) for pair_id in pairs)


def verdict_browser(
    tables: Mapping[str, pd.DataFrame], rows: pd.DataFrame, answers: pd.DataFrame, first: Sequence[str]
) -> VBox:
    """A live browser of judged pairs: filters by ``SLICED``, two systems side by side, only where they
    differ.

    Args:
        tables: ``pairs``, ``queries`` and ``items``.
        rows: pair_id and the columns ``SLICED``.
        answers: system, pair_id, label, parse_kind, completion.
        first: the two systems shown at first.
    """
    names = list(dict.fromkeys(answers["system"]))
    boxes = [
        Dropdown(description=side, options=names, value=name)
        for side, name in zip(("left", "right"), first, strict=True)
    ]
    differ = Checkbox(description="only where they differ", value=True)
    labels = answers.pivot(index="pair_id", columns="system", values="label").reindex(rows["pair_id"])

    def kept() -> pd.Series:
        left, right = (labels[box.value].to_numpy() for box in boxes)
        return pd.Series((left != right) | (not differ.value), index=rows.index)

    def card(pair_id: str) -> str:
        return verdict_card(tables, answers, pair_id, list(dict.fromkeys(box.value for box in boxes)))

    return _browser(rows, SLICED, card, [*boxes, differ], kept)


def _browser(
    rows: pd.DataFrame,
    names: Sequence[str],
    card_of: Callable[[str], str],
    further: Sequence[Any] = (),
    kept: Callable[[], pd.Series] | None = None,
) -> VBox:
    """Filters over columns, a place to step through, and the card of the pair there.

    Args:
        rows: pair_id and the columns to filter by.
        names: of these columns.
        card_of: the card of a pair.
        further: boxes of the caller; a change in one filters anew.
        kept: which rows these boxes leave; None for all.
    """
    filters = {name: Dropdown(description=name, options=[ALL, *sorted(set(rows[name]))]) for name in names}
    back, on = Button(description="previous"), Button(description="next")
    place, count, card = BoundedIntText(value=1, min=1, description="pair"), Label(), HTML()
    found = rows["pair_id"]

    def show(_: Any = None) -> None:
        count.value = f"of {len(found)}"
        card.value = card_of(found.iloc[place.value - 1]) if len(found) else "no such pair"

    def choose(_: Any = None) -> None:
        nonlocal found
        wanted = pd.Series(True, index=rows.index) if kept is None else kept()
        for name, box in filters.items():
            wanted &= (rows[name] == box.value) | (box.value == ALL)
        found = rows.loc[wanted, "pair_id"]
        place.max = max(len(found), 1)
        place.value = 1
        show()

    def step(by: int) -> None:
        place.value += by  # the box keeps it within its bounds

    for box in (*filters.values(), *further):
        box.observe(choose, "value")
    place.observe(show, "value")
    back.on_click(lambda _: step(-1))
    on.on_click(lambda _: step(1))
    choose()
    chooser = [HBox(list(filters.values())), *([HBox(list(further))] if further else [])]
    return VBox([*chooser, HBox([back, place, count, on]), card])


def trace_card(traces: pd.DataFrame, pair_id: str) -> str:
    """What the teachers of all arms wrote about one pair, side by side, as HTML with every value escaped.

    A line of a chain that the chain to its left does not have is set in bold: it is what the stage added.

    Args:
        traces: ``TRACE_COLUMNS`` of one or more arms, in the order to show.
        pair_id: which pair.

    Raises:
        DataError: no such pair; the nearest is named.
    """
    rows = traces[traces["pair_id"] == pair_id]
    if rows.empty:
        raise DataError(f"traces: no pair_id {pair_id!r}; {nearest(pair_id, traces['pair_id'].head(1000))}")
    columns, before = [], None
    for row in rows.to_dict("records"):
        lines = str(row["completion"]).splitlines()
        new = [before is not None and line not in before for line in lines]
        columns.append(row | {"lines": list(zip(lines, new, strict=True))})
        before = lines or before
    return _TRACES.render(pair_id=pair_id, first=columns[0], columns=columns)


def trace_browser(traces: pd.DataFrame) -> VBox:
    """A live browser of traces: an accepted one on the left, a rejected one on the right, stage by stage.

    Args:
        traces: as for :func:`trace_card`; an arm and a reason choose what is rejected.
    """
    arm = Dropdown(description="arm", options=list(dict.fromkeys(traces["arm"])))
    reason = Dropdown(description="rejected as")
    places = {side: BoundedIntText(value=1, min=1, description=side) for side in ("accepted", "rejected")}
    counts = {side: Label() for side in places}
    cards = {side: HTML() for side in places}
    found: dict[str, list[str]] = {side: [] for side in places}

    def show(_: Any = None) -> None:
        for side, card in cards.items():
            counts[side].value = f"of {len(found[side])}"
            at = places[side].value - 1
            card.value = trace_card(traces, found[side][at]) if found[side] else "no such trace"

    def choose(_: Any = None) -> None:
        own = traces[traces["arm"] == arm.value]
        found["accepted"] = own.loc[own["kept"], "pair_id"].tolist()
        found["rejected"] = own.loc[~own["kept"] & (own["reason"] == reason.value), "pair_id"].tolist()
        for side, place in places.items():
            place.max = max(len(found[side]), 1)
            place.value = 1
        show()

    def list_reasons(_: Any = None) -> None:
        own = traces[(traces["arm"] == arm.value) & ~traces["kept"]]
        reason.options = names = own["reason"].value_counts().index.tolist()
        reason.value = names[0] if names else None
        choose()

    arm.observe(list_reasons, "value")
    reason.observe(choose, "value")
    for place in places.values():
        place.observe(show, "value")
    list_reasons()
    sides = [VBox([HBox([places[side], counts[side]]), cards[side]]) for side in places]
    return VBox([HBox([arm, reason]), HBox(sides)])


def _row(tables: Mapping[str, pd.DataFrame], table: str, key: str, name: str) -> dict[str, Any]:
    frame = tables[table]
    found = frame[frame[key] == name]
    if found.empty:
        raise DataError(f"{table}: no {key} {name!r}; {nearest(name, frame[key].head(1000))}")
    return {str(column): value for column, value in found.iloc[0].items()}


def _text(row: Mapping[str, Any], column: str) -> str:
    """The text of an optional column; "" where the table does not have it."""
    value = row.get(column)
    return value if isinstance(value, str) else ""


def _picture(data: bytes) -> str:
    """Base64 of a PNG drawn anew from the picture; "" where there is none that can be read."""
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG")).convert("RGB")
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):  # what PIL raises
        return ""
    scale = SIDE / max(image.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    out = io.BytesIO()
    image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), how).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode("ascii")
