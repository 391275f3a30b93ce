"""Head, torso and tail by how often a query was asked in the past, never by the traffic it then meets."""

from math import ceil

import numpy as np
from numpy.typing import NDArray

from lore_lib.errors import DataError
from lore_lib.sampling.intervals import Floats
from lore_lib.serving.traffic import Ints

STRATA = ("head", "torso", "tail")
HEAD, TORSO, TAIL = range(3)
FORGOTTEN = 0.01  # a query whose count has faded below this was never seen, for all we know

Codes = NDArray[np.int8]


class DecayedCounts:
    """One exact count per key that halves with time.

    Example:
        >>> counts = DecayedCounts(3, half_life=1.0)
        >>> counts.add(np.array([0, 0, 2]))
        >>> counts.age(1.0)
        >>> counts.estimate().tolist()
        [1.0, 0.0, 0.5]
    """

    def __init__(self, keys: int, half_life: float) -> None:
        """Start with nothing seen.

        Args:
            keys: numbered from 0.
            half_life: in the unit of `age`.
        """
        self._counts, self._half_life = np.zeros(keys), half_life

    def add(self, keys: Ints) -> None:
        """Count these, repeats included."""
        self._counts += np.bincount(keys, minlength=len(self._counts))

    def age(self, elapsed: float) -> None:
        """Let time pass."""
        self._counts *= 0.5 ** (elapsed / self._half_life)

    def forget(self, keys: Ints) -> None:
        """Start over with these, which now name something else."""
        self._counts[keys] = 0

    def estimate(self) -> Floats:
        """The count of every key, (keys,)."""
        return self._counts.copy()


class CountMin:
    """The same in a fixed number of counters, never too low (Cormode & Muthukrishnan 2005).

    Each key has one counter in each of `DEPTH` rows, shared with the keys that hash alike; its estimate is
    the least of them. With probability 1 - e^-DEPTH (98 %) it is too high by at most e / width of all counts.
    """

    DEPTH = 4

    def __init__(self, keys: int, half_life: float, width: int, rng: np.random.Generator) -> None:
        """Start with nothing seen.

        Args:
            keys: numbered from 0.
            half_life: in the unit of `age`.
            width: counters per row.
            rng: source of the hash functions.
        """
        prime = 2**31 - 1  # a Mersenne prime above every key, and products stay below 2**63
        a, b = rng.integers(1, prime, (2, self.DEPTH, 1))
        self._cells = (a * np.arange(keys) + b) % prime % width
        self._rows, self._half_life = np.zeros((self.DEPTH, width)), half_life

    def add(self, keys: Ints) -> None:
        """Count these, repeats included."""
        for row, cells in zip(self._rows, self._cells, strict=True):
            row += np.bincount(cells[keys], minlength=len(row))

    def age(self, elapsed: float) -> None:
        """Let time pass."""
        self._rows *= 0.5 ** (elapsed / self._half_life)

    def forget(self, keys: Ints) -> None:
        """Do nothing: a sketch cannot take one key back. What replaced it inherits its fading count."""

    def estimate(self) -> Floats:
        """The count of every key, (keys,)."""
        return np.asarray(np.take_along_axis(self._rows, self._cells, axis=1).min(axis=0))


def stratify(counts: Floats, head_share: float, torso_share: float) -> Codes:
    """The stratum of every query by its past count.

    Of the distinct queries seen, the most asked ceil(head_share) part is head, the next part up to
    ceil(head_share + torso_share) torso, the rest tail. What the past never saw is tail.

    Args:
        counts: (queries,) past requests; ties are broken by the query's number.
        head_share: share of distinct queries, not of requests.
        torso_share: likewise.

    Returns:
        (queries,) HEAD, TORSO or TAIL.

    Raises:
        DataError: the past is empty, or the shares are no shares.

    Example:
        >>> [STRATA[code] for code in stratify(np.array([4, 9, 1, 0]), 0.3, 0.3)]
        ['torso', 'head', 'tail', 'tail']
    """
    if not (head_share >= 0 and torso_share >= 0 and head_share + torso_share <= 1):
        raise DataError(
            f"head_share={head_share} and torso_share={torso_share}; at least 0, at most 1 together."
        )
    seen = int((counts > FORGOTTEN).sum())
    if not seen:
        raise DataError(f"the past log is empty ({len(counts)} queries, none asked); warm up on 1 request.")
    # the 1e-9 undoes binary rounding such as 0.07 * 100 = 7.000..1
    head, torso = (ceil(share * seen - 1e-9) for share in (head_share, head_share + torso_share))
    codes = np.full(len(counts), TAIL, dtype=np.int8)
    codes[np.argsort(-counts, kind="stable")[:torso]] = TORSO
    codes[np.argsort(-counts, kind="stable")[:head]] = HEAD
    return codes


Counter = DecayedCounts | CountMin
