"""A model that is asked for all shards of a batch at once, one turn of the conversations after the other.

What a chain asks next depends on what it was told, so a model that runs elsewhere is asked in turns. In each
turn every shard is gone through again with what has been said so far; whatever else its chains would ask is
laid out, and the model answers that before the next turn:

    asked/00000.parquet  what a shard asks in this turn, a few rows a row group
    said/00000.jsonl     what it was told in this run, a line each, replies that are of no use included

The cache of replies keeps what is of use, as with any model; these two files go when their shard is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lore_lib.artifacts import atomic_write, make_folder
from lore_lib.cot.chat import Arrived, Reply, Request, ignore
from lore_lib.cot.replies import request_key

ROWS_AT_ONCE = 128
"""Requests of a row group of ``asked``, which go to an engine, and come back from it, together."""

_UNASKED = "unasked"


def asked_file(folder: Path, number: int) -> Path:
    """What a shard of the batch in this folder asks."""
    return folder / "asked" / f"{number:05d}.parquet"


def said_file(folder: Path, number: int) -> Path:
    """What it was told."""
    return folder / "said" / f"{number:05d}.jsonl"


def forget(folder: Path, number: int) -> None:
    """Remove both of a shard that is written."""
    asked_file(folder, number).unlink(missing_ok=True)
    said_file(folder, number).unlink(missing_ok=True)


class Told:
    """Says what a model has said before; a request that it was not asked yet fails, and is kept in ``open``.

    Args:
        name, identity: of the model.
        said: what it has said, by the key of the request.
    """

    def __init__(self, name: str, identity: dict[str, Any], said: Mapping[str, Reply]) -> None:
        self.name, self.identity, self._said = name, identity, said
        self.open: dict[str, Request] = {}

    def complete(self, requests: Sequence[Request], arrived: Arrived = ignore) -> list[Reply]:
        """See :class:`lore_lib.cot.chat.ChatModel`."""
        replies = []
        for place, request in enumerate(requests):
            key = request_key(self.identity, request).hex()
            if key not in self._said:
                self.open[key] = request
            replies.append(self._said.get(key, Reply(failure=_UNASKED)))
            arrived(place, replies[-1])
        return replies


def read_said(path: Path) -> dict[str, Reply]:
    """What a shard was told; a last line that a kill has cut is passed over."""
    said = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else ():
        if line.endswith("\n"):
            key, reply = json.loads(line)
            said[key] = Reply(**reply)
    return said


def add_said(path: Path, key: str, reply: Reply) -> None:
    """Add a line; a killed process loses none that was added."""
    with make_folder(path.parent).joinpath(path.name).open("a", encoding="utf-8") as file:
        file.write(json.dumps([key, asdict(reply)]) + "\n")


def write_asked(path: Path, requests: Mapping[str, Request], tokens: Sequence[Sequence[int]]) -> None:
    """Lay out requests: key, tokens of the conversation, sample, and schema as JSON."""
    columns = {
        "key": list(requests),
        "tokens": list(tokens),
        "sample": [request.sample for request in requests.values()],
        "schema": [json.dumps(request.schema) for request in requests.values()],
    }
    types = {"key": pa.string(), "tokens": pa.list_(pa.int32()), "sample": pa.int64(), "schema": pa.string()}
    table = pa.table(columns, pa.schema(types.items()))
    atomic_write(path, lambda part: pq.write_table(table, part, row_group_size=ROWS_AT_ONCE))
