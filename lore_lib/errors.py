"""Errors a user can act on: each message says what was found, the rule, and the nearest fix."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class LoreError(Exception):
    """Base of every error the kit raises on purpose; the command line shows its text, never a traceback."""


class ConfigError(LoreError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class ArtifactError(LoreError):
    """A file or folder of a run is missing, damaged, foreign, or cannot be written."""


class DataError(LoreError):
    """A table of a vertical breaks its schema."""


class EngineError(LoreError):
    """A model, teacher, sampler or notebook kernel did not do its work."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Name the closest known word, or all of them when none is close.

    >>> nearest("demoo", ["smoke", "demo"])
    "did you mean 'demo'?"
    >>> nearest("zzz", ["smoke", "demo"])
    'known: smoke, demo'
    """
    words = list(known)
    close = get_close_matches(name, words, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(words)}"


def printable(text: str) -> str:
    r"""Text that a terminal may show: nothing in it moves the cursor, turns direction or hides.

    Line breaks stay.

    >>> printable("a\x1b[2J\nb")
    'a\\x1b[2J\nb'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def problem_count(number: int) -> str:
    """ "1 problem", "3 problems"."""
    return "1 problem" if number == 1 else f"{number} problems"


def listed(problems: Sequence[str]) -> str:
    """Problems as the end of a message: how many, then one to a line.

    >>> listed(["items: no title"])
    '1 problem:\\n  items: no title'
    """
    return "\n  ".join([f"{problem_count(len(problems))}:", *problems])
