"""Scores computed offline for the hot query-item pairs, read back online by key."""

import numpy as np

from lore_lib.sampling.intervals import Floats
from lore_lib.serving.router import Mask
from lore_lib.serving.traffic import Ints

NONE = -1  # no score held


class OfflineScores:
    """What the offline job scored: for each pair, what was scored and when.

    A score is valid until it is `ttl` old. Pairs are numbered; what was scored is any number of the caller's
    (here the row of the judged pair), so that an answer can be told from what it should be by now.

    Example:
        >>> scores = OfflineScores(pairs=3, capacity=1, ttl=2.0)
        >>> asked, shows = np.array([5.0, 9.0, 0.0]), np.array([70, 71, 72])
        >>> scores.refill(asked, least=1.0, content=shows, now=0.0, ahead=1.0)
        1
        >>> scores.valid(np.array([0, 1]), now=1.5).tolist()
        [False, True]
        >>> scores.valid(np.array([0, 1]), now=2.5).tolist()
        [False, False]
    """

    def __init__(self, pairs: int, capacity: int, ttl: float) -> None:
        """Start empty.

        Args:
            pairs: numbered from 0.
            capacity: scores that fit.
            ttl: oldest age that is served, in the unit of `now`.
        """
        self.capacity, self.ttl = capacity, ttl
        self.content = np.full(pairs, NONE)
        self.scored = np.full(pairs, -np.inf)

    def valid(self, pairs: Ints, now: Floats | float) -> Mask:
        """Whether each of these has a score young enough."""
        return np.asarray((self.content[pairs] != NONE) & (now - self.scored[pairs] <= self.ttl))

    def invalidate(self, pairs: Ints) -> None:
        """Drop the scores of these: their item changed or is another."""
        self.content[pairs] = NONE

    def refill(self, demand: Floats, least: float, content: Ints, now: float, ahead: float) -> int:
        """The offline job: keep what is asked most, and score what is missing or about to grow too old.

        Args:
            demand: (pairs,) past requests of each; 0 for what must not be cached.
            least: a pair asked less than this is not admitted.
            content: (pairs,) what a score of it made now would be of.
            now: the time.
            ahead: until the next refill; a score that would not live that long is made again.

        Returns:
            How many pairs were scored.
        """
        admitted = np.flatnonzero((demand >= least) & (demand > 0))
        most_first = np.argsort(-demand[admitted], kind="stable")
        admitted = admitted[most_first[: self.capacity]]
        dropped = np.ones(len(demand), dtype=bool)
        dropped[admitted] = False
        self.content[dropped] = NONE
        due = admitted[~self.valid(admitted, now + ahead)]
        self.content[due], self.scored[due] = content[due], now
        return len(due)
