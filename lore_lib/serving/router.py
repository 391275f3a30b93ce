"""Which of cache, student and LLM answers a request."""

import numpy as np
from numpy.typing import NDArray

from lore_lib.errors import DataError, nearest

POLICIES = ("stratified", "cache + student", "all student", "all LLM")


def route(policy: str, strata: NDArray[np.str_], cached: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Send each request to "cache", "student" or "llm".

    - stratified: head to the cache (to the student where it misses), torso to the student, tail to the LLM.
    - cache + student: the same without an LLM online: the tail goes to the student.
    - all student, all LLM: one judge for everything.

    Whether the LLM's queue has room is known only when the request arrives: `simulate` then falls back to
    the student.

    Args:
        policy: one of POLICIES.
        strata: (requests,) head, torso or tail.
        cached: (requests,) whether the cache holds the pair.

    Raises:
        DataError: unknown policy.

    Example:
        >>> route("stratified", np.array(["head", "head", "tail"]), np.array([True, False, False])).tolist()
        ['cache', 'student', 'llm']
    """
    if policy not in POLICIES:
        raise DataError(f"unknown routing policy {policy!r}; {nearest(policy, POLICIES)}")
    if policy.startswith("all "):
        return np.full(len(strata), policy.removeprefix("all ").lower())
    from_cache = (strata == "head") & cached
    rest = np.where((strata == "tail") & (policy == "stratified"), "llm", "student")
    return np.where(from_cache, "cache", rest)
