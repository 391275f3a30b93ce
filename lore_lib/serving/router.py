"""Which of cache, student and LLM answers a request."""

import numpy as np
from numpy.typing import NDArray

from lore_lib.errors import DataError, nearest
from lore_lib.sampling.intervals import Floats
from lore_lib.serving.strata import HEAD, TAIL, Codes

POLICIES = (
    *("stratified", "cache + student", "cache + LLM", "confidence"),
    *("random", "all student", "all LLM"),
)
ASK_CACHE = POLICIES[:4]  # the policies that have one
ASK_LLM = tuple(policy for policy in POLICIES if policy not in ("cache + student", "all student"))
ROUTES = ("cache", "student", "llm")
CACHE, STUDENT, LLM = range(3)

Mask = NDArray[np.bool_]


def route(policy: str, strata: Codes, cached: Mask, unsure: Mask, chance: Floats, llm_share: float) -> Codes:
    """Send each request to the cache, the student or the LLM.

    - stratified: head to the cache (to the student where it misses), torso to the student, tail to the LLM.
    - cache + student: the same without an LLM online: the tail goes to the student.
    - cache + LLM: the same without a student: whatever misses the cache goes to the LLM.
    - confidence: whatever misses the cache goes to the student, and on to the LLM where that is unsure.
    - random: to the LLM at random, else to the student: what an equal share of LLM answers is worth when
      nobody chooses them.
    - all student, all LLM: one judge for everything.

    Whether the LLM has room is known only when a request arrives: then the student answers in its place.

    Args:
        policy: one of POLICIES.
        strata: (requests,) HEAD, TORSO or TAIL.
        cached: (requests,) whether the cache holds a valid score of the pair.
        unsure: (requests,) whether the student's confidence is below the threshold.
        chance: (requests,) uniform in [0, 1).
        llm_share: of the requests, under "random".

    Returns:
        (requests,) CACHE, STUDENT or LLM.

    Raises:
        DataError: unknown policy.
    """
    if policy not in POLICIES:
        raise DataError(f"unknown routing policy {policy!r}; {nearest(policy, POLICIES)}")
    none = np.zeros(len(strata), dtype=bool)
    from_cache = (strata == HEAD) & cached if policy in ASK_CACHE else none
    to_llm = {
        "stratified": strata == TAIL,
        "cache + LLM": ~none,
        "confidence": unsure,
        "random": chance < llm_share,
        "all LLM": ~none,
    }.get(policy, none)
    return np.where(from_cache, CACHE, np.where(to_llm, LLM, STUDENT)).astype(np.int8)
