"""A YAML file written by people, read with the line of every value.

The reader trusts nothing: it takes plain mappings, lists and scalars, and refuses what YAML can do beyond
that (tags, aliases, merge keys). It builds its nodes from parser events, because ``yaml.compose`` recurses
in C without a limit and deep nesting kills the process.
"""

from __future__ import annotations

import codecs
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lore_lib.errors import printable

MAX_BYTES = 10_000_000
MAX_DEPTH = 32
MAX_VALUES = 200_000

Location = tuple[str | int, ...]
"""Keys and list positions from the top of the file to one value."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser where PyYAML was built with it
_KINDS = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a ZIP archive or an Office document",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"SQLite format 3": "an SQLite database",
}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_NO_TEXT = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAB_INDENT = re.compile(r"[ ]*\t\s*\S")
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji need them


class Problem(NamedTuple):
    """What a model says is wrong, and where: the keys and positions that lead there from the model down."""

    path: Location
    message: str


class Contradictions(ValueError):
    """Raised by a model's own validator for values that are well-formed and do not fit together.

    Args:
        problems: all that was found.
        complete: False where something wrong kept the validator from looking at the rest.
    """

    def __init__(self, problems: Iterable[Problem], complete: bool = True) -> None:
        self.problems, self.complete = list(problems), complete
        super().__init__("; ".join(f"{dotted(path)}: {message}" for path, message in self.problems))


@dataclass(frozen=True, order=True)
class Diagnostic:
    """One thing to mend in a file. ``str()`` gives ``file:line: field: message``, which editors can click.

    Attributes:
        file: path as the user would write it.
        line: from 1.
        field: dotted path of the value, "" for the file as a whole.
        found: what stands there, "" where the message says it.
        message: the rule, and the nearest fix where there is one.
    """

    file: str
    line: int
    field: str
    found: str
    message: str

    def __str__(self) -> str:
        found = f" (found {_brief(self.found, 60)})" if self.found else ""
        parts = (f"{self.file}:{self.line}", _brief(self.field, 200), _brief(self.message, 400) + found)
        return ": ".join(printable(part).replace("\n", "\\n") for part in parts if part)


@dataclass
class Node:
    """One value of the file.

    Attributes:
        path: where it stands in the file, keys as they are written.
        line: of its key in a mapping, otherwise of itself; from 1.
        text: a scalar as it was written.
        value: a scalar, a list of nodes, or a mapping from keys to nodes.
    """

    path: Location
    line: int
    text: str
    value: Any

    @property
    def plain(self) -> Any:
        """The value as plain data."""
        if isinstance(self.value, dict):
            return {key: child.plain for key, child in self.value.items()}
        return [child.plain for child in self.value] if isinstance(self.value, list) else self.value

    @property
    def found(self) -> str:
        """The value in a few words."""
        if isinstance(self.value, dict):
            return f"a mapping of {len(self.value)}"
        return f"a list of {len(self.value)}" if isinstance(self.value, list) else self.text or "nothing"

    def child(self, part: str | int) -> Node | None:
        """The node under one key or list position; None where there is none."""
        if isinstance(self.value, dict):
            if part in self.value:
                return self.value[part]  # type: ignore[no-any-return]
            return next((node for key, node in self.value.items() if str(key) == str(part)), None)
        inside = isinstance(self.value, list) and isinstance(part, int) and part < len(self.value)
        return self.value[part] if inside else None

    def locate(self, location: Location) -> Node:
        """The node at a location; parts the file does not have (union tags, missing names) are passed."""
        node = self
        for part in location:
            node = node.child(part) or node
        return node

    def walk(self) -> Iterator[Node]:
        """This node and all below it, in the order of the file."""
        yield self
        if isinstance(self.value, dict | list):
            for child in self.value.values() if isinstance(self.value, dict) else self.value:
                yield from child.walk()

    def remove(self, paths: set[Location]) -> set[str]:
        """Remove the nodes that stood at these paths; returns the words that went with them."""
        if not isinstance(self.value, dict | list):
            return set()
        children = list(self.value.values() if isinstance(self.value, dict) else self.value)
        gone = [child for child in children if child.path in paths]
        if isinstance(self.value, dict):
            self.value = {key: child for key, child in self.value.items() if child.path not in paths}
        else:
            self.value = [child for child in children if child.path not in paths]
        words = {word for child in gone for node in child.walk() for word in (str(node.path[-1]), node.text)}
        return words.union(*(child.remove(paths) for child in children if child.path not in paths)) - {""}


@dataclass(frozen=True)
class Source:
    """A file as read.

    Attributes:
        root: the top value; None where nothing can be made of the file.
        problems: what is wrong with the file as YAML.
        broken: paths whose value could not be read.
    """

    root: Node | None
    problems: list[Diagnostic]
    broken: set[Location]


@dataclass
class _Unreadable(Exception):
    """Nothing more can be read after this."""

    line: int
    message: str
    found: str = ""


def read_source(path: Path) -> Source:
    """Read a YAML file; what is wrong with it becomes a list of problems and never an exception.

    Problems are: no file, another kind of file, more than ``MAX_BYTES``, another encoding than UTF-8 (a UTF-8
    byte-order mark is passed over), control characters, tabs that indent, YAML that cannot be parsed, more
    than one document, nesting beyond ``MAX_DEPTH``, more than ``MAX_VALUES`` values; and, for a single value:
    a key that stands twice or is no scalar, aliases, tags, merge keys, invisible characters, numbers that are
    not finite.
    """
    builder = _Builder()
    try:
        text = _decode(_read_bytes(path))
        root = builder.build(text)
    except _Unreadable as error:
        root = None
        builder.faults.append((error.line, (), error.found, error.message))
    problems = [
        Diagnostic(str(path), line, dotted(location), found, message)
        for line, location, found, message in builder.faults
    ]
    return Source(root, sorted(problems), builder.broken)


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise _Unreadable(1, "a folder, not a file" if path.is_dir() else "no such file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _Unreadable(1, f"cannot be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise _Unreadable(
            1, f"the file is larger than {MAX_BYTES:,} bytes; rows belong into tables beside it"
        )
    return raw


def _decode(raw: bytes) -> str:
    for start, kind in _KINDS.items():
        if raw.startswith(start):
            raise _Unreadable(1, f"this is {kind}, not a YAML text")
    for mark, name in _BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            raise _wrong_encoding(1, 0, name, f"byte-order mark {mark.hex(' ')}")
    for first, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        high, low = raw[first:200:2], raw[1 - first : 200 : 2]
        if high.count(0) > len(high) // 2 and 0 not in low:
            raise _wrong_encoding(1, raw.index(0), name, "byte 00")
    body = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        offset = error.start + len(raw) - len(body)
        raise _wrong_encoding(line, offset, _likely(body), f"byte {body[error.start]:02x}") from error
    if odd := _NO_TEXT.search(text):
        raise _Unreadable(
            text.count("\n", 0, odd.start()) + 1,
            f"character {_name(odd[0])} cannot stand in YAML ({len(_NO_TEXT.findall(text))} in the file); "
            "remove it",
        )
    return text


def _likely(raw: bytes) -> str:
    """The likely encoding of bytes that are not UTF-8; "" when none of the common ones fits."""
    read = raw.decode("utf-8", errors="replace")
    if sum(not c.isascii() for c in read) > 2 * read.count("\ufffd"):
        return "mixed"
    for codec, name in (("gb2312", "GB18030"), ("cp1252", "CP1252")):
        try:
            raw.decode(codec)
        except UnicodeDecodeError:
            continue
        return name
    return ""


def _wrong_encoding(line: int, offset: int, likely: str, found: str) -> _Unreadable:
    fix = f"the file looks like {likely}: convert it with iconv -f {likely} -t UTF-8"
    if likely in ("", "mixed"):
        fix = "most of the file is UTF-8: type this character anew" if likely else "save the file as UTF-8"
    return _Unreadable(line, f"not UTF-8 at byte offset {offset}; {fix}", found)


@dataclass
class _Builder:
    """Turns parser events into nodes and collects what is wrong with single values."""

    faults: list[tuple[int, Location, str, str]] = field(default_factory=list)  # line, path, found, message
    broken: set[Location] = field(default_factory=set)
    values: int = 0
    loader: Any = None

    def build(self, text: str) -> Node:
        try:
            self.loader = _Loader(text)
            while self.loader.check_event(yaml.StreamStartEvent, yaml.DocumentStartEvent):
                self.loader.get_event()
            if self.loader.check_event(yaml.StreamEndEvent):
                raise _Unreadable(1, "the file is empty; 'lore init-vertical' writes one to start from")
            root = self.node(())
            self.loader.get_event()
            if not self.loader.check_event(yaml.StreamEndEvent):
                line = self.loader.get_event().start_mark.line + 1
                raise _Unreadable(line, "a second document starts here; one file holds one")
        except yaml.MarkedYAMLError as error:
            raise self._syntax(error, text) from error
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # escapes beyond Unicode, without a mark
            raise _Unreadable(1, f"not YAML: {error}") from error
        return root

    def node(self, path: Location, line: int = 0) -> Node:
        """The next value; ``line`` is that of its key."""
        event = self.loader.get_event()
        line = line or event.start_mark.line + 1
        self.values += 1
        if self.values > MAX_VALUES:
            raise _Unreadable(
                line, f"more than {MAX_VALUES:,} values; rows belong into tables beside the file"
            )
        if len(path) > MAX_DEPTH:
            raise _Unreadable(line, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            self._fault(
                line, path, f"*{event.anchor}", "aliases are not read; write the value out", broken=True
            )
            return Node(path, line, "", None)
        if event.tag is not None:
            self._fault(line, path, event.tag, "tags are not read; remove it", broken=True)
        if isinstance(event, yaml.MappingStartEvent):
            return Node(path, line, "", self._mapping(path))
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(path, line, "", self._sequence(path))
        return Node(path, line, event.value, self._scalar(event, path, line))

    def _mapping(self, path: Location) -> dict[Any, Node]:
        entries: dict[Any, Node] = {}
        while not self.loader.check_event(yaml.MappingEndEvent):
            event = self.loader.peek_event()
            name = self.node((*path, event.value if isinstance(event, yaml.ScalarEvent) else "?"))
            child = self.node(name.path, name.line)
            if not isinstance(event, yaml.ScalarEvent):
                self._fault(name.line, path, name.found, "a key must be a word or a text")
            elif name.value in entries:
                lines = f"{entries[name.value].line} and {name.line}"
                self._fault(name.line, name.path, "", f"the key stands twice, on lines {lines}; keep one")
            else:
                entries[name.value] = child
        self.loader.get_event()
        return entries

    def _sequence(self, path: Location) -> list[Node]:
        items: list[Node] = []
        while not self.loader.check_event(yaml.SequenceEndEvent):
            items.append(self.node((*path, len(items))))
        self.loader.get_event()
        return items

    def _scalar(self, event: yaml.ScalarEvent, path: Location, line: int) -> Any:
        text = event.value
        if odd := _invisible(text):
            self._fault(line, path, text, f"invisible character {_name(odd)}; remove it")
        if event.tag is not None:
            return text
        tag = self.loader.resolve(yaml.ScalarNode, text, event.implicit)
        if tag == "tag:yaml.org,2002:merge":
            self._fault(line, path, "", "merge keys are not read; write the values out", broken=True)
            return text
        try:
            value = self.loader.construct_object(yaml.ScalarNode(tag, text))
        except (yaml.YAMLError, ValueError, OverflowError):
            kind = tag.rpartition(":")[2]
            self._fault(line, path, text, f"reads as a {kind}, but is none; write it in quotes", broken=True)
            return text
        if isinstance(value, float) and not math.isfinite(value):
            self._fault(line, path, text, "a number must be finite", broken=True)
        return value

    def _fault(self, line: int, path: Location, found: str, message: str, broken: bool = False) -> None:
        self.faults.append((line, path, found, message))
        if broken:
            self.broken.add(path)

    def _syntax(self, error: yaml.MarkedYAMLError, text: str) -> _Unreadable:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        lines = text.splitlines()
        tabs = [number for number, content in enumerate(lines, start=1) if _TAB_INDENT.match(content)]
        if line in tabs:
            for number in tabs[:-1]:
                self._fault(number, (), "", "a tab indents this line; use spaces")
            return _Unreadable(tabs[-1], "a tab indents this line; use spaces")
        began = error.context_mark.line + 1 if error.context_mark else line
        line = line if line <= len(lines) else began  # what is never closed fails at the end of the file
        context = f" {error.context}" if error.context else ""
        since = f", which began on line {began}" if began != line else ""
        if error.problem == "exceeded maximum nesting depth":  # libyaml's own bound, met while it looks ahead
            return _Unreadable(line, f"nested deeper than {MAX_DEPTH} levels")
        return _Unreadable(line, f"not YAML: {error.problem or 'cannot be parsed'}{context}{since}")


def dotted(location: Location) -> str:
    """``("near", 2, "name")`` as ``near[2].name``."""
    text = "".join(f"[{part}]" if type(part) is int else f".{part}" for part in location)
    return text.removeprefix(".")


def _invisible(text: str) -> str:
    """The first character that nobody sees: control, format, surrogate, line or paragraph separator."""
    if text.isprintable():
        return ""
    for position, character in enumerate(text):
        if character in "\t\n\r" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            continue
        around = text[max(position - 1, 0) : position] + text[position + 1 : position + 2]
        if character in _JOINERS and len(around) == 2 and not any(map(str.isascii, around)):
            continue
        return character
    return ""


def _name(character: str) -> str:
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()


def _brief(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
