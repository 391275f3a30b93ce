"""The paper's second experiment: what is each stage of the teacher worth to a student taught its chains?

One arm per teacher: all stages, all but one, none (naive). Beside them stands the on-policy arm, whose chains
the first arm's student wrote itself. All arms teach the same train pairs to the same base for the same number
of steps and judge the same dev pairs from the same prompts: they differ in the chains and in nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.config import Config
from lore_lib.cot.on_policy import ARM, on_policy_traces
from lore_lib.cot.synthesis import Synthesis
from lore_lib.errors import DataError
from lore_lib.parallel import run_parallel
from lore_lib.rng import derive_seed
from lore_lib.sampling.engine import SampleJob, run_sample_job, sample_job
from lore_lib.sampling.intervals import Spread, over_trainings
from lore_lib.sampling.pass_at_k import summarise
from lore_lib.training.sft import SftJob, sft_job, train_sft

SUBSETS = ("all", "hard", "visual")
"""All pairs; those of long-tail queries that the text settles; those that only the picture settles."""


@dataclass(frozen=True)
class ArmJob:
    """Tune one student and let it write; picklable, for :func:`lore_lib.parallel.run_parallel`.

    Attributes:
        tune: its training.
        writes: what it samples then.
    """

    tune: SftJob
    writes: tuple[SampleJob, ...]


def run_arm(job: ArmJob) -> list[Path]:
    """Do one job and return the files of its samples; finished samples are kept, the model is not."""
    if not all(one.out.exists() for one in job.writes):
        train_sft(job.tune)
        for one in job.writes:
            run_sample_job(one)
    shutil.rmtree(job.tune.out, ignore_errors=True)
    return [one.out for one in job.writes]


def subset_of(pairs: pd.DataFrame) -> pd.Series:
    """general, hard or visual, as the benchmark cuts them; needs the columns kind and intent."""
    hard = pairs["intent"].ne("plain").map({True: "hard", False: "general"})
    return hard.mask(pairs["kind"] == "visual", "visual")


def arms_that_teach(traces: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The arms of which the funnel kept a chain; the others have nothing that a student could be taught.

    Raises:
        DataError: there is none.
    """
    teach = {arm: frame for arm, frame in traces.items() if frame["kept"].any()}
    if not teach:
        reasons = pd.concat(traces.values())["reason"].value_counts()
        told = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        raise DataError(
            f"the funnel kept no chain of any arm ({told}); the words of your queries must stand in the "
            "vocabularies of vertical.yaml, or be explained in selling_points as 'word (meaning)'"
        )
    return teach


def teach_students(
    config: Config,
    traces: Mapping[str, pd.DataFrame],
    rows: pd.DataFrame,
    dev: pd.DataFrame,
    makers: Mapping[str, Synthesis],
    folder: Path,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Tune one student per arm and seed, and one per seed on its own verified chains.

    Args:
        config: sizes (``cot.ablation_*``, ``cot.on_policy_samples``), schedule, model and seed.
        traces: arm -> its traces; the student of the first one writes the chains of the on-policy arm.
        rows: from :func:`lore_lib.cot.synthesis.pair_rows`, of the same pairs in the same order.
        dev: pair_id, query_id, prompt of the pairs to judge.
        makers: arm -> its synthesis; the funnel of the first one verifies the student.
        folder: where the jobs' files go.

    Returns:
        Samples of all arms and seeds over ``dev``, with a column ``seed``; the traces of the on-policy arm
        (seed, source); the funnel's verdict on every chain that a student wrote.

    Raises:
        DataError: no dev pairs.
    """
    if dev.empty:
        raise DataError("no dev pairs to judge; mark some queries and their pairs as dev")
    asked = write_parquet(dev[["pair_id", "query_id", "prompt"]], folder / "dev.parquet")
    own = write_parquet(rows[["pair_id", "query_id", "prompt"]], folder / "train.parquet")
    first = next(iter(traces))
    jobs = []
    for seed in config.cot.ablation_seeds:
        for arm, frame in traces.items():
            writes = {"dev": asked} | ({"own": own} if arm == first else {})
            jobs.append(_job(config, arm, seed, frame, writes, folder))
    written = run_parallel(run_arm, jobs, config.runtime.workers, "students of each teacher")
    drawn = dict(zip([(job.tune.arm, job.tune.seed) for job in jobs], written, strict=True))

    later, chosen, verdicts = [], [], []
    for seed in config.cot.ablation_seeds:
        _, chains = drawn[first, _seed(config, seed)]
        kept, judged = on_policy_traces(read_parquet(chains), rows, traces[first], makers[first])
        chosen.append(kept.assign(seed=seed))
        verdicts.append(judged.assign(seed=seed))
        later.append(_job(config, ARM, seed, kept, {"dev": asked}, folder))
    jobs += later
    written += run_parallel(run_arm, later, config.runtime.workers, "on-policy students")
    seeds = {_seed(config, seed): seed for seed in config.cot.ablation_seeds}
    samples = [
        read_parquet(paths[0]).assign(seed=seeds[job.tune.seed])
        for job, paths in zip(jobs, written, strict=True)
    ]
    return tuple(pd.concat(frames, ignore_index=True) for frames in (samples, chosen, verdicts))  # type: ignore[return-value]


def _seed(config: Config, seed: int) -> int:
    return derive_seed(config.seed, "stages", seed)


def _job(
    config: Config, arm: str, seed: int, traces: pd.DataFrame, writes: Mapping[str, Path], folder: Path
) -> ArmJob:
    home = _home(folder, arm, seed)
    taught = write_parquet(traces[["pair_id", "prompt", "completion", "kept"]], home / "traces.parquet")
    tune = replace(
        sft_job(config, arm, taught, home / "model"),
        epochs=config.cot.ablation_epochs,
        batch_pairs=config.cot.ablation_batch_pairs,
        seed=_seed(config, seed),
    )
    counts = {"dev": config.cot.ablation_samples, "own": config.cot.on_policy_samples}
    drawing = [
        sample_job(config, arm, tune.out, prompts, home / f"{name}.parquet", n=counts[name])
        for name, prompts in writes.items()
    ]
    return ArmJob(tune, tuple(drawing))


def _home(folder: Path, arm: str, seed: int) -> Path:
    return folder / f"{arm.replace(' ', '-')}-{seed}"


def kept_scores(
    folder: Path, arms: Sequence[str], seeds: Sequence[int], gold: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """What the students that :func:`teach_students` left in its folder score on each dev pair.

    Args:
        folder: as given to it.
        arms, seeds: of the students to read; arms that could not be taught are left out.
        gold: pair_id, query_id, label, kind of at least the dev pairs.

    Returns:
        Arm -> pair_id, query_id, label, kind, right (share of its samples, of all seeds).

    Raises:
        DataError: a pair that gold does not have.
    """
    known = gold.set_index("pair_id")[["query_id", "label", "kind"]]
    scores = {}
    for arm in arms:
        paths = [_home(folder, arm, seed) / "dev.parquet" for seed in seeds]
        if not all(path.is_file() for path in paths):
            continue
        drawn = pd.concat(map(read_parquet, paths))
        lost = drawn.loc[~drawn["pair_id"].isin(known.index), "pair_id"]
        if len(lost):
            raise DataError(f"{arm}: {lost.nunique()} pairs without gold label, first {lost.iloc[0]!r}")
        right = drawn["label"] == drawn["pair_id"].map(known["label"])
        share = right.groupby(drawn["pair_id"], sort=False).mean().rename("right")
        scores[arm] = share.to_frame().join(known).reset_index()
    return scores


def teacher_table(traces: Mapping[str, pd.DataFrame], pairs: pd.DataFrame) -> pd.DataFrame:
    """The teachers' own accuracy: share of verdicts that are the gold label, by arm (rows) and subset.

    Args:
        traces: arm -> its traces.
        pairs: pair_id, kind and intent of at least these pairs.
    """
    which = pairs.set_index("pair_id").pipe(subset_of)
    rows = {}
    for arm, frame in traces.items():
        right = frame["teacher_label"] == frame["label"]
        rows[arm] = {"all": right.mean(), **right.groupby(frame["pair_id"].map(which)).mean()}
    return pd.DataFrame(rows).T


def beside_teachers(students: pd.DataFrame, samples: pd.DataFrame, teachers: pd.DataFrame) -> pd.DataFrame:
    """Scores of the students by arm, and beside them how often they parse and what their teachers got right.

    Where there were several trainings, the lowest and highest pass@1 among them follow.

    Args:
        students: from :func:`student_table`; samples: what it was made from; teachers: from
            :func:`teacher_table`.
    """
    table = students.pivot(index="system", columns=["metric", "subset"], values="value")
    order = [(metric, name) for metric in students["metric"].unique() for name in SUBSETS]
    table = table.loc[samples["system"].unique(), [key for key in order if key in table]]
    table["parse rate", "all"] = (samples["parse_kind"] == "ok").groupby(samples["system"]).mean()
    if students["seeds"].max() > 1:
        whole = students[students["subset"] == "all"].drop_duplicates("system").set_index("system")
        for end in ("lowest", "highest"):
            table[f"{end} {whole['metric'].iloc[0]}", "all"] = whole[end]
    for name in SUBSETS:
        if name in teachers:
            table["the teacher alone", name] = teachers[name]
    return table


def student_table(
    samples: pd.DataFrame, gold: pd.DataFrame, k: int, rng: np.random.Generator, resamples: int = 1000
) -> pd.DataFrame:
    """pass@1 and pass@k of every arm on every subset, the mean over its seeds.

    Args:
        samples: from :func:`teach_students`.
        gold: pair_id, query_id, label, kind, intent of the pairs that were judged.
        k: tries of pass@k.
        rng: source of the resamples.
        resamples: bootstrap resamples behind each interval, of queries: how far other queries would move a
            number, not how far another training would.

    Returns:
        Columns system, subset, metric, value, low, high, n (pairs), seeds, lowest and highest (over seeds).
    """
    rows = []
    for system, drawn in samples.groupby("system", sort=False):
        scored = {seed: summarise(part, gold, k).set_index("pair_id") for seed, part in drawn.groupby("seed")}
        for subset, part in _groups(gold).items():
            for metric, column in {"pass@1": "pass_at_1", f"pass@{k}": "pass_at_k"}.items():
                values = np.array([frame.loc[part["pair_id"], column] for frame in scored.values()])
                spread = over_trainings(values, part["query_id"], resamples, rng)
                rows.append((system, subset, metric, *spread))
    return pd.DataFrame(rows, columns=["system", "subset", "metric", *Spread._fields])


def student_gaps(
    samples: pd.DataFrame, gold: pd.DataFrame, rng: np.random.Generator, resamples: int = 1000
) -> pd.DataFrame:
    """How far pass@1 of every other arm is from that of the first, on the same pairs and by the same seeds.

    Args:
        samples: from :func:`teach_students`.
        gold, rng, resamples: as for :func:`student_table`.

    Returns:
        Columns system, subset, value (negative: worse than the first arm), low, high (of a bootstrap over
        queries), n (pairs), seeds, lowest and highest (over seeds).
    """
    scored = {
        system: np.array(
            [
                summarise(part, gold, 1).set_index("pair_id").loc[gold["pair_id"], "pass_at_1"]
                for _, part in drawn.groupby("seed")
            ]
        )
        for system, drawn in samples.groupby("system", sort=False)
    }
    first, *others = scored
    rows = []
    for system in others:
        for subset, part in _groups(gold).items():
            here = gold["pair_id"].isin(part["pair_id"]).to_numpy()
            gaps = scored[system][:, here] - scored[first][:, here]
            rows.append((system, subset, *over_trainings(gaps, part["query_id"], resamples, rng)))
    return pd.DataFrame(rows, columns=["system", "subset", *Spread._fields])


def _groups(gold: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The pairs of each subset that has any."""
    groups = {name: gold if name == "all" else gold[subset_of(gold) == name] for name in SUBSETS}
    return {name: part for name, part in groups.items() if len(part)}
