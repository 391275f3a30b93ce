"""Reading a YAML file with lines: every mistake is found at once, where it stands, and nothing crashes it."""

import codecs
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lore_lib.errors import DataError
from lore_lib.vertical import source
from lore_lib.vertical.checking import check, load
from lore_lib.vertical.source import Contradictions, Diagnostic, Problem, read_source


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(Strict):
    dimension: Literal["color", "material"]
    cap: int = Field(ge=1, le=4)


class Share(Strict):
    full: int
    near: int


class Set(Strict):
    kind: Literal["set"]
    values: list[str]


class Limit(Strict):
    kind: Literal["limit"]
    most: int


class Shop(Strict):
    """A small model with every shape that the reader has to find its way through."""

    name: str
    limit: float
    share: Share
    colors: dict[str, dict[str, tuple[int, int, int]]]
    kin: dict[str, str] = {}
    rules: list[Rule] = []
    size: int | Share = 1
    styles: dict[str, Annotated[Set | Limit, Field(discriminator="kind")]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "Shop":
        families: dict[str, str] = {}
        found: list[Problem] = []
        for family, shades in self.colors.items():
            for shade in shades:
                if shade in families:
                    found.append(
                        Problem(("colors", family, shade), f"{shade!r} is {families[shade]} as well")
                    )
                families.setdefault(shade, family)
        for name, kin in self.kin.items():
            if kin not in self.kin:
                found.append(Problem(("kin",), f"unknown kin {kin!r} of {name}"))
        if self.share.near > self.share.full:
            found.append(Problem(("share",), "'near' must not exceed 'full'"))
        if found:
            raise Contradictions(found)
        return self


GOOD = """\
name: corner shop
limit: 2.5
share:
  full: 95
  near: 90
colors:
  blue:
    navy: [16, 24, 88]
  red:
    crimson: [196, 16, 46]
kin: {silk: satin, satin: silk}
rules:
  - {dimension: color, cap: 4}
  - dimension: material
    cap: 2
"""


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def parser(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test runs on libyaml and on the parser in Python, which stands in where there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_Loader", getattr(yaml, request.param))
        yield


def wrong(content: str | bytes, folder: Path) -> list[tuple[int, str, str]]:
    """Line, field and message of every problem."""
    path = folder / "shop.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    checked = check(path, Shop)
    assert (checked.value is None) == bool(checked.problems)
    assert all(problem.file == str(path) for problem in checked.problems)
    return [(problem.line, problem.field, problem.message) for problem in checked.problems]


def changed(*changes: tuple[str, str]) -> str:
    text = GOOD
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


def test_a_good_file_gives_its_model_and_the_line_of_every_value(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(GOOD)
    assert check(path, Shop).value == Shop.model_validate(yaml.safe_load(GOOD))
    root = read_source(path).root
    assert root is not None
    lines = {node.path: node.line for node in root.walk()}
    assert lines[()] == 1
    assert lines["share", "near"] == 5
    assert lines["colors", "red", "crimson", 2] == 10
    assert lines["rules", 1] == 14
    assert lines["rules", 1, "cap"] == 15


def test_everything_wrong_is_listed_at_once_with_its_line(tmp_path: Path) -> None:
    text = changed(
        ("corner shop", "no"),
        ("limit: 2.5", "limits: 2.5"),
        ("near: 90", "naer: 90"),
        ("    crimson: [196, 16, 46]", "    crimson: [196, 16]\n    navy: [1, 2, 3]\n    navy: [1, 2, 3]"),
        ("satin: silk", "satin: slik"),
        ("dimension: color,", "dimension: colour,"),
        ("cap: 2", "cap: two"),
    )
    assert wrong(text, tmp_path) == [
        (1, "limit", "this field is missing"),
        (1, "name", "should be a valid string; write it in quotes"),
        (2, "limits", "unknown field; did you mean 'limit'?"),
        (3, "share.near", "this field is missing"),
        (5, "share.naer", "unknown field; did you mean 'near'?"),
        (10, "colors.red.crimson[2]", "this field is missing"),
        (11, "colors.red.navy", "'navy' is blue as well"),
        (12, "colors.red.navy", "the key stands twice, on lines 11 and 12; keep one"),
        (13, "kin.satin", "unknown kin 'slik' of satin"),
        (15, "rules[0].dimension", "should be 'color' or 'material'; did you mean 'color'?"),
        (17, "rules[1].cap", "should be a valid integer, unable to parse string as an integer"),
    ]


def test_the_problems_become_one_error_with_their_true_number(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(changed(("satin: silk", "satin: slik"), ("2.5", "2.5\nlimit: 2")))
    assert check(path, Shop).summary == "2 problems"
    with pytest.raises(DataError) as caught:
        load(path, Shop)
    assert str(caught.value).splitlines() == [
        f"{path}: 2 problems:",
        f"  {path}:3: limit: the key stands twice, on lines 2 and 3; keep one",
        f"  {path}:12: kin.satin: unknown kin 'slik' of satin",
    ]
    path.write_text("name: a")
    assert check(path, Shop).summary == "3 problems; more may show once these are mended"
    path.write_text(changed(("satin: silk", "satin: slik")))
    assert check(path, Shop).summary == "1 problem"


def test_what_only_follows_from_another_problem_is_not_reported(tmp_path: Path) -> None:
    text = changed(("satin: silk}", "satin: [silk]}"), ("full: 95", "full: many"))
    assert [field for _, field, _ in wrong(text, tmp_path)] == ["share.full", "kin.satin"]
    assert not check(tmp_path / "shop.yaml", Shop).complete
    assert wrong(changed(("{silk: satin, satin: silk}", "{silk: tin}")), tmp_path) == [
        (11, "kin.silk", "unknown kin 'tin' of silk")
    ]
    assert check(tmp_path / "shop.yaml", Shop).complete


def test_a_missing_table_of_words_says_that_more_may_show(tmp_path: Path) -> None:
    assert wrong("name: a\nlimit: 1\nshare: {full: 1, near: 2}\n", tmp_path) == [
        (1, "colors", "this field is missing")
    ]
    assert not check(tmp_path / "shop.yaml", Shop).complete


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "says"),
    [
        ("limit: 2.5", "limit: .nan", 2, "limit", "a number must be finite"),
        ("limit: 2.5", "limit: 2001-99-99", 2, "limit", "reads as a timestamp, but is none"),
        ("full: 95", "full: !!int '95'", 4, "share.full", "tags are not read"),
        ("full: 95", "full: !!python/name:os.system x", 4, "share.full", "tags are not read"),
        ("limit: 2.5", "limit: &a 2.5\nsize: *a", 3, "size", "aliases are not read"),
        ("  blue:\n", "  blue:\n    <<: {teal: [0, 1, 2]}\n", 8, "colors.blue.<<", "merge keys are not read"),
        ("corner shop", "<<", 1, "name", "merge keys are not read"),
        ("  blue:\n", "  blue:\n    [a, b]: [1, 2, 3]\n", 8, "colors.blue", "a key must be a word"),
        ("silk: satin,", "silk: satin, on: silk,", 11, "kin.on", "the key should be a valid string; write"),
        ("limit: 2.5", "limit: 2.5\nsize: {full: 1, near: x}", 3, "size.near", "should be a valid integer"),
        ("limit: 2.5", "limit: 2.5\nsize: {full: 1, near: 2, mid: 3}", 3, "size.mid", "unknown field"),
        ("share:\n", "styles:\n  a:\n    kind: sett\nshare:\n", 5, "styles.a.kind", "did you mean 'set'?"),
        ("share:\n", "styles: {a: {most: 1}}\nshare:\n", 3, "styles.a", "field 'kind', which says what"),
        ("share:\n", "styles: {a: {kind: set, values: [1]}}\nshare:\n", 3, "styles.a.values[0]", "quotes"),
        ("share:\n", "styles: {a: {kind: limit, mst: 1, most: 1}}\nshare:\n", 3, "styles.a.mst", "'most'"),
        ("share:\n", "styles: {a: {kind: set, values: [], x: 1}}\nshare:\n", 3, "styles.a.x", "known: "),
        ("share:\n  full: 95\n  near: 90", "share: 95", 3, "share", "should be a mapping"),
        ("navy:", "na\u200bvy:", 8, "colors.blue.na\u200bvy", "invisible character U+200B ZERO WIDTH SPACE"),
        ("corner", "\u202ecorner", 1, "name", "invisible character U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("corner shop", '"corner\\0shop"', 1, "name", "invisible character U+0000"),
        ("corner", "cor\u200dner", 1, "name", "invisible character U+200D ZERO WIDTH JOINER"),
    ],
)  # fmt: skip
def test_one_wrong_value_is_one_problem_in_its_place(
    old: str, new: str, line: int, field: str, says: str, tmp_path: Path
) -> None:
    problems = wrong(changed((old, new)), tmp_path)
    assert any(problem[:2] == (line, field) and says in problem[2] for problem in problems), problems
    assert len(problems) == 1


@pytest.mark.parametrize("name", ["متجر", "חנות 12", "街角の店", "می\u200cشود", "👩\u200d👧", "Café"])
def test_names_in_any_script_are_welcome(name: str, tmp_path: Path) -> None:
    assert wrong(changed(("corner shop", name)), tmp_path) == []


def test_a_byte_order_mark_of_utf_8_is_passed_over(tmp_path: Path) -> None:
    assert wrong(codecs.BOM_UTF8 + GOOD.encode(), tmp_path) == []


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"", 1, "the file is empty"),
        (b"# only a comment\n", 1, "the file is empty"),
        (b"- a\n- b\n", 1, "should be a mapping"),
        (b"word", 1, "should be a mapping"),
        (b"a: 1\n---\nb: 2\n", 2, "a second document starts here"),
        (b"a: [1, 2\nb: 3\n", 2, "which began on line 1"),
        (b"a: 1\nb: 'open\n", 2, "not YAML: found unexpected end of stream"),
        (b"a: 1\nb: \x07\n", 2, "character U+0007 cannot stand in YAML"),
        (b"a: 1\nb: \xe2\x80\xa8\n", 2, "character U+2028 LINE SEPARATOR cannot stand in YAML"),
        (b"a: 1\nb: caf\xe9 noir\n", 2, "not UTF-8 at byte offset 11; the file looks like CP1252"),
        ("a: 1\nb: 真丝连衣裙".encode("gbk"), 2, "not UTF-8 at byte offset 8; the file looks like GB18030"),
        ("é: ñandú\nà: ü".encode() + b" \xe9\n", 2, "offset 19; most of the file is UTF-8"),
        (codecs.BOM_UTF8 + b"a: \xff\n", 1, "not UTF-8 at byte offset 6"),
        (GOOD.encode("utf-16"), 1, "the file looks like UTF-16: convert it with iconv -f UTF-16 -t UTF-8"),
        (GOOD.encode("utf-16-le"), 1, "the file looks like UTF-16LE"),
        (GOOD.encode("utf-16-be"), 1, "the file looks like UTF-16BE"),
        (GOOD.encode("utf-32"), 1, "the file looks like UTF-32"),
        (b"PAR1\x15\x04", 1, "this is a Parquet file"),
        (b"PK\x03\x04 vertical.xlsx", 1, "this is a ZIP archive or an Office document"),
    ],
    ids=lambda value: repr(value)[:24],
)  # fmt: skip
def test_what_cannot_be_read_says_where_and_why(content: bytes, line: int, says: str, tmp_path: Path) -> None:
    problems = wrong(content, tmp_path)
    assert [problem[0] for problem in problems] == [line]
    assert says in problems[0][2]


def test_every_line_that_a_tab_indents_is_named(tmp_path: Path) -> None:
    assert [(line, says) for line, _, says in wrong("a:\n\tb: 1\nc: 2\n \td: 3\n", tmp_path)] == [
        (2, "a tab indents this line; use spaces"),
        (4, "a tab indents this line; use spaces"),
    ]
    assert wrong(changed(("limit: 2.5", "limit: 2.5 # a\ttab")), tmp_path) == []


def test_a_bomb_of_aliases_is_refused_line_by_line(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    problems = [line for line, _, message in wrong(bomb, tmp_path) if "aliases" in message]
    assert problems == [line for line in range(2, 61) for _ in range(2)]


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_bottomless_nesting_is_refused(opening: str, tmp_path: Path) -> None:
    problems = wrong("a: 1\nb:\n  " + opening * 100_000, tmp_path)
    assert [(line, says) for line, _, says in problems] == [(3, "nested deeper than 32 levels")]


def test_files_and_lists_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_VALUES", 1000)
    assert "more than 1,000 values" in wrong("a: [" + "1," * 1000 + "]", tmp_path)[0][2]
    monkeypatch.setattr(source, "MAX_BYTES", 2000)
    assert "larger than 2,000 bytes" in wrong("# " + "x" * 2000, tmp_path)[0][2]


def test_no_file_and_a_folder_are_problems_too(tmp_path: Path) -> None:
    assert check(tmp_path / "none.yaml", Shop).problems[0].message == "no such file"
    assert check(tmp_path, Shop).problems[0].message == "a folder, not a file"


def test_a_problem_reads_as_file_line_field_and_cannot_touch_the_terminal() -> None:
    problem = Diagnostic("shop.yaml", 3, "kin.\u202esilk", "\x1b[2J" + "x" * 1_000_000, "should be text")
    shown = str(problem)
    assert shown.startswith("shop.yaml:3: kin.\\u202esilk: should be text (found \\x1b[2Jxxx")
    assert shown.isprintable()
    assert len(shown) < 200


@given(st.binary(max_size=200) | st.text("ab01 :-#?!&*<>|%@`'\"[]{},.~=\n\t\\/\u200b\u2028é", max_size=60))
def test_no_bytes_crash_the_reader_and_what_it_accepts_is_what_yaml_says(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    checked = check(path, Shop)
    assert checked.problems
    assert all(str(problem).isprintable() and problem.line >= 1 for problem in checked.problems)
    read = read_source(path)
    if not read.problems:
        assert read.root is not None
        assert read.root.plain == yaml.load(path.read_bytes(), source._Loader)


words = st.text("abcxyz é街", min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words
data = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(words, inner), max_leaves=6)


@settings(max_examples=40)
@given(st.dictionaries(words, data, min_size=1, max_size=4), st.booleans())
def test_data_comes_back_as_it_was_written_with_lines_that_rise(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, Any], flow: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "data.yaml"
    path.write_text(
        yaml.dump(written, Dumper=Plain, allow_unicode=True, default_flow_style=flow), encoding="utf-8"
    )
    read = read_source(path)
    assert read.root is not None
    assert read.problems == []
    assert read.root.plain == written
    lines = [node.line for node in read.root.walk()]
    assert lines == sorted(lines)


class Plain(yaml.SafeDumper):
    """Writes no anchors, as people do not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def test_numbers_are_read_as_yaml_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text("[0x1F, 1_000, 1e3, 1.5e+3, -0.0, 010, null, ~, yes]")
    root = read_source(path).root
    assert root is not None
    assert root.plain == [31, 1000, "1e3", 1500.0, -0.0, 8, None, None, True]
    assert math.copysign(1, root.plain[4]) == -1
