"""What stands around a prompt when a student reads it."""

from typing import NamedTuple


class Frame(NamedTuple):
    """Tokens around what a student reads."""

    before: list[int]
    behind: list[int]

    def around(self, ids: list[int], max_tokens: int) -> list[int]:
        """The framed prompt; one that is too long loses its own end, never the frame's."""
        room = max(0, max_tokens - len(self.before) - len(self.behind))
        return [*self.before, *ids[:room], *self.behind]
