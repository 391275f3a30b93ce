"""Runs that differ in their seed, in one table: does what one run shows come back in the others?

A seed draws everything anew: the world, the test queries, the order of training and the samples. An interval
inside one run says how far other queries would move a number; the interval here says how far another run
would.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lore_lib.artifacts import MANIFEST, Manifest, read_manifest, verify_files
from lore_lib.errors import ArtifactError
from lore_lib.run.report import find_run
from lore_lib.sampling.intervals import t_interval


def runs_of_a_stage(runs: Sequence[str], stage: str) -> list[Manifest]:
    """The manifests of a stage in runs that differ in their seed, with every file checked.

    Args:
        runs: names of two runs or more, of one profile and vertical, each with a seed of its own.
        stage: one that all of them have finished.

    Raises:
        ArtifactError: fewer than two runs, one that is not there, has not finished the stage or is damaged,
            two of one seed, or runs of several profiles or verticals.
    """
    if len(runs) < 2:
        raise ArtifactError("one run has no spread: name two or more, such as lore seeds demo demo-18")
    manifests = [_finished(run, stage) for run in runs]
    for field in ("profile", "vertical"):
        found = sorted({str(getattr(manifest, field)) for manifest in manifests})
        if len(found) > 1:
            raise ArtifactError(f"the runs are of {field} {' and '.join(found)}; compare those of one")
    seeds = [manifest.seed for manifest in manifests]
    if twice := {seed for seed in seeds if seeds.count(seed) > 1}:
        raise ArtifactError(f"several runs have the seed {twice.pop()}: they are no draws of their own")
    return manifests


def over_seeds(manifests: Sequence[Manifest]) -> pd.DataFrame:
    """Every number that all runs have.

    Args:
        manifests: see `runs_of_a_stage`.

    Returns:
        One row per metric: name, mean, low and high (95 % t interval over the runs, which takes them as
        independent), lowest, highest, runs.
    """
    values = pd.DataFrame([{one.name: one.value for one in manifest.metrics} for manifest in manifests])
    rows = [
        (name, *t_interval(numbers), numbers.min(), numbers.max(), len(numbers))
        for name, numbers in values.dropna(axis=1).items()
    ]
    return pd.DataFrame(rows, columns=["name", "mean", "low", "high", "lowest", "highest", "runs"])


def differing_settings(manifests: Sequence[Manifest]) -> list[str]:
    """Settings that are not the same in all runs, such as "grpo.seeds": what differs may be due to them."""
    configs = pd.DataFrame([pd.json_normalize(each.config).iloc[0].map(str) for each in manifests])
    differing = configs.columns[configs.nunique(dropna=False) > 1]
    return sorted(name for name in differing if name not in ("run", "seed") and "runtime." not in name)


def _finished(run: str, stage: str) -> Manifest:
    folder = find_run(run) / stage
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"run {run!r} has not finished {stage!r}; run: lore run --run {run} --to {stage}")
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    return manifest
