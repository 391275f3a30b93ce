"""The student of a run: taught by the LLM's votes, and beside it the same one taught by people's labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lore_lib.config import Config
from lore_lib.rair.metrics import compare, evaluate
from lore_lib.sampling.intervals import Floats, cluster_bootstrap
from lore_lib.serving.calibration import expected_calibration_error, fit_temperature, reliability, temper
from lore_lib.serving.export import OnnxStudent, export_student
from lore_lib.serving.student import Student, measure_ms, train_student
from lore_lib.vertical.schema import LABELS

VOTES, GOLD = "student (votes)", "student (gold labels)"
QUALITY = ("acc@2", "acc@4", "macro_f1")
TIMED, TIMED_BATCH = 64, 16  # prompts timed one at a time, and in batches of so many


def hard_targets(labels: pd.Series) -> pd.DataFrame:
    """All of the target on one label: L1, L2, L3, L4 by row.

    >>> hard_targets(pd.Series(["L4"])).iloc[0].tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    return pd.DataFrame({label: (labels == label).astype(float) for label in LABELS})


def distil(
    votes: pd.DataFrame, prompts: pd.DataFrame, config: Config, folder: Path, seed: int
) -> dict[str, Student]:
    """Two students that differ in their targets alone.

    Args:
        votes: pair_id, L1..L4, from `student.vote_shares`.
        prompts: pair_id, bare (what a student reads), label (gold).
        config: serving.student_*, sft.max_sequence_tokens.
        folder: where the trainer may write.
        seed: of both.
    """
    taught = votes.merge(prompts[["pair_id", "bare", "label"]], on="pair_id").rename(
        columns={"bare": "prompt"}
    )
    rows = {VOTES: taught, GOLD: taught.assign(**hard_targets(taught["label"]))}
    serving = config.serving
    return {
        name: train_student(
            serving.student_base,
            examples,
            folder,
            serving.student_epochs,
            seed,
            config.sft.max_sequence_tokens,
            serving.student_learning_rate,
            serving.student_batch_pairs,
        )
        for name, examples in rows.items()
    }


@dataclass(frozen=True)
class Assessment:
    """Students beside their teacher.

    Attributes:
        table: judge, metric, value, low, high, n: quality against gold, agreement with the LLM, calibration
            error before and after the temperature; and the differences of the two students.
        temperatures: by student, fitted on dev pairs.
        curves: rows of `calibration.reliability` by judge.
    """

    table: pd.DataFrame
    temperatures: dict[str, float]
    curves: dict[str, pd.DataFrame]


def assess(
    students: Mapping[str, Student],
    pairs: pd.DataFrame,
    dev: pd.DataFrame,
    resamples: int,
    rng: np.random.Generator,
) -> Assessment:
    """How good, how faithful, how honest.

    Args:
        students: of `distil`.
        pairs: pair_id, query_id, bare, label (gold), llm_label ("" when not parsed).
        dev: bare, label: pairs on which the temperatures are fitted.
        resamples: bootstrap draws over queries.
        rng: source of the draws.
    """
    judged = pairs[["pair_id", "query_id"]].assign(gold=pairs["label"])
    said = {"llm": judged.assign(predicted=pairs["llm_label"])}
    rows = _quality("llm", said["llm"], resamples, rng)
    temperatures: dict[str, float] = {}
    curves: dict[str, pd.DataFrame] = {}
    for name, student in students.items():
        shares = student.predict_proba(pairs["bare"].tolist())
        said[name] = judged.assign(predicted=_labels(shares))
        temperatures[name] = fit_temperature(student.predict_proba(dev["bare"].tolist()), dev["label"])
        agrees = (said[name]["predicted"] == pairs["llm_label"]).astype(float)
        low, high = cluster_bootstrap(agrees, pairs["query_id"], resamples, rng)
        rows += _quality(name, said[name], resamples, rng)
        rows.append((name, "agrees with llm", float(agrees.mean()), low, high))
        for when, warm in (("", shares), (", tempered", temper(shares, temperatures[name]))):
            rows.append(
                (name, f"ece{when}", expected_calibration_error(warm, pairs["label"]), np.nan, np.nan)
            )
            curves[f"{name}{when}"] = reliability(warm, pairs["label"])
    gaps = compare(said[VOTES], said[GOLD], resamples, rng).set_index("metric")
    for metric in QUALITY:
        difference, low, high = (float(gaps[name].loc[metric]) for name in ("difference", "low", "high"))
        rows.append((f"{VOTES} - {GOLD}", metric, difference, low, high))
    table = pd.DataFrame(rows, columns=["judge", "metric", "value", "low", "high"]).assign(n=len(pairs))
    return Assessment(table, temperatures, curves)


def export_and_time(
    student: Student, folder: Path, prompts: list[str], temperature: float
) -> tuple[OnnxStudent, pd.DataFrame]:
    """The student in ONNX, in 32 and in 8 bits, and what each saves.

    Args:
        student: trained.
        folder: gets the 32-bit student in student/, which is the one that is served, and the other in int8/.
        prompts: for the export's check and for timing.
        temperature: of the service.

    Returns:
        The served student, and by way: mib, ms (median, one prompt at a time), ms_batched (per prompt),
        agrees (share of labels that torch gives as well).
    """
    served = export_student(student, folder / "student", prompts, temperature)
    small = export_student(student, folder / "int8", prompts, temperature, int8=True)
    expected, timed = student.predict(prompts), prompts[:TIMED]
    parts = [timed[start : start + TIMED_BATCH] for start in range(0, len(timed), TIMED_BATCH)]
    weights = sum(weight.numel() for weight in student.model.parameters()) * 4
    sizes = [weights, *((folder / name / "model.onnx").stat().st_size for name in ("student", "int8"))]
    rows = []
    ways: tuple[Student | OnnxStudent, ...] = (student, served, small)
    for name, way, size in zip(("torch", "onnx", "onnx int8"), ways, sizes, strict=True):
        alone, together = (
            measure_ms(way.predict, [[prompt] for prompt in timed]),
            measure_ms(way.predict, parts),
        )
        agrees = np.mean([a == b for a, b in zip(way.predict(prompts), expected, strict=True)])
        rows.append((name, size / 2**20, np.median(alone), together.sum() / len(timed), agrees))
    return served, pd.DataFrame(rows, columns=["way", "mib", "ms", "ms_batched", "agrees"]).set_index("way")


def _quality(
    name: str, judged: pd.DataFrame, resamples: int, rng: np.random.Generator
) -> list[tuple[str, str, float, float, float]]:
    rows = evaluate(judged, resamples, rng).set_index("metric").loc[list(QUALITY)]
    return [(name, str(metric), row["value"], row["low"], row["high"]) for metric, row in rows.iterrows()]


def _labels(shares: Floats) -> list[str]:
    return [LABELS[best] for best in shares.argmax(axis=1)]
