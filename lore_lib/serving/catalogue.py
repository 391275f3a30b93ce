"""The items that may be asked for, in columns: a million take hundreds of megabytes, not gigabytes."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from lore_lib.errors import DataError

FIELDS = ("item_id", "title", "cpv", "skus", "shop", "price", "selling_points", "picture")
"""What a judge may read of an item; `picture` is what the captioner saw."""


class Item(NamedTuple):
    """An item and its version, which changes with anything a judge may read."""

    fields: dict[str, Any]
    version: str


class Catalogue:
    """Items by id.

    Args:
        items: the fields of `FIELDS` but the picture; more columns are left out.
        captions: what the captioner saw by item_id; None where it abstained, or has no entry.

    Raises:
        DataError: a field is missing, or an item stands twice.
    """

    def __init__(self, items: pd.DataFrame, captions: pd.Series) -> None:
        missing = [name for name in FIELDS[:-1] if name not in items]
        if missing:
            raise DataError(
                f"the items have no column {', '.join(missing)}; there is: {', '.join(items.columns)}"
            )
        if items["item_id"].duplicated().any():
            twice = items["item_id"][items["item_id"].duplicated()]
            raise DataError(f"{len(twice)} items stand twice, first {twice.iloc[0]!r}; keep one row of each")
        frame = items[list(FIELDS[:-1])].assign(picture=items["item_id"].map(captions))
        frame["picture"] = frame["picture"].astype(object).where(frame["picture"].notna(), None)
        self._table = pa.Table.from_pandas(frame, preserve_index=False).combine_chunks()
        self._row = {item_id: row for row, item_id in enumerate(items["item_id"])}

    def __len__(self) -> int:
        return len(self._row)

    def find(self, item_id: str) -> Item | None:
        """The item as it is now, or None."""
        row = self._row.get(item_id)
        if row is None:
            return None
        fields = {name: column[row].as_py() for name, column in zip(FIELDS, self._table.columns, strict=True)}
        return Item(fields, _version(fields))

    def versions(self, item_ids: pd.Series) -> list[str]:
        """The version of each item, "" of those that are gone."""
        found = (self.find(item_id) for item_id in item_ids)
        return [item.version if item else "" for item in found]


def _version(fields: dict[str, Any]) -> str:
    told = repr([fields[name] for name in FIELDS])
    return blake2b(told.encode(), digest_size=8).hexdigest()
