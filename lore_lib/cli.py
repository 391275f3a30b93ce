"""The `lore` command: run the notebooks, show the report, check the machine.

What a command needs is imported inside it, so that the light ones answer at once.
"""

import signal
import sys
import time
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.status import Status

import lore_lib
from lore_lib.errors import ConfigError, LoreError, printable

if TYPE_CHECKING:
    from lore_lib.run.runner import Progress

commands = typer.Typer(
    name="lore",
    help="Reproduce LORE, a large generative model for search relevance, notebook by notebook.",
    epilog="Exit status: 0 done, 1 failed, 2 a wrong setting, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RUNS, DATA, MODELS = "Runs", "Data", "Models"  # headings of `lore --help`
BENCHMARK, SERVING = "Benchmark", "Serving"

Profile = Annotated[str, typer.Option(help="smoke, demo, small or paper.")]
Vertical = Annotated[str, typer.Option(help="Folder name under data/verticals.")]
Run = Annotated[str, typer.Option(help="Folder name under outputs; the profile's name by default.")]
Made = Annotated[str, typer.Option("--run", help="Folder name under outputs.")]
Seed = Annotated[int, typer.Option(help="Root of every random stream.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")
]


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lore {lore_lib.__version__}")
        raise typer.Exit


@commands.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """Options of `lore` itself."""


@commands.command("run", rich_help_panel=RUNS)
def run_command(
    profile: Profile = "demo",
    vertical: Vertical = "apparel_home",
    run: Run = "",
    seed: Seed = 17,
    first: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="First stage, such as 3 or 03_sft.")
    ] = "",
    last: Annotated[str, typer.Option("--to", metavar="STAGE", help="Last stage.")] = "",
    only: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Just this stage; may be repeated.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Run the notebooks in order; stages that have not changed are left as they are."""
    from lore_lib.config import load_config
    from lore_lib.run.report import print_summary, write_html
    from lore_lib.run.runner import run_stages

    config = load_config(profile, vertical, run, seed, _overrides(settings))
    console = _console()
    try:
        with _Lines(console) as lines:
            run_stages(
                profile,
                vertical,
                run,
                seed,
                _overrides(settings),
                first=first,
                last=last,
                only=only or (),
                watch=lines.show,
            )
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here", markup=False, soft_wrap=True)
        raise
    print_summary(config.run, console)
    console.print(f"report: {write_html(config.run)}", markup=False, soft_wrap=True)


@commands.command("report", rich_help_panel=RUNS)
def report_command(
    run: Made = "demo",
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead.")] = False,
) -> None:
    """Show the results of a run and write its HTML page."""
    from lore_lib.run.report import as_json, print_summary, write_html

    if json:
        typer.echo(as_json(run))
        return
    console = _console()
    print_summary(run, console)
    console.print(f"report: {write_html(run)}", markup=False, soft_wrap=True)


@commands.command("seeds", rich_help_panel=RUNS)
def seeds_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folder names under outputs.")],
    stage: Annotated[str, typer.Option(help="Stage whose numbers are compared.")] = "04_pass_at_8",
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON instead.")] = False,
) -> None:
    """Compare runs that differ in their seed: each number's mean, 95 % interval over runs, extremes."""
    from lore_lib.run.runner import select_stages
    from lore_lib.run.seeds import differing_settings, over_seeds, runs_of_a_stage

    (spec,) = select_stages(only=[stage])
    manifests = runs_of_a_stage(runs, spec.name)
    table = over_seeds(manifests)
    if json:
        typer.echo(table.to_json(orient="records", indent=2))
        return
    typer.echo(table.round(3).to_string(index=False))
    if differing := differing_settings(manifests):
        typer.echo(f"the runs differ in {', '.join(differing)} too")


@commands.command("diagnose", rich_help_panel=RUNS)
def diagnose_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder name under outputs.")] = "demo",
) -> None:
    """Name the failure signs in a run's artefacts, with evidence and the usual remedy."""
    from lore_lib.run.report import find_run
    from lore_lib.training.diagnosis import diagnose, read_artefacts

    console = Console(highlight=False)
    findings = diagnose(read_artefacts(find_run(run)))
    for finding in findings:
        verdict = "[FOUND]" if finding.found else "[clear]"
        console.print(f"{verdict} {finding.sign}: {finding.evidence}", markup=False, soft_wrap=True)
        if finding.found:
            console.print(f"        remedy: {finding.remedy}", markup=False, soft_wrap=True)
    if not findings:
        typer.echo(f"nothing to judge yet; run: lore run --run {run} --to 05_grpo")


@commands.command("doctor", rich_help_panel=RUNS)
def doctor_command(profile: Profile = "demo", settings: Settings = None) -> None:
    """Check Python, packages, kernel, device, memory and disk; every failure comes with its fix."""
    from lore_lib.config import load_config
    from lore_lib.run.doctor import diagnose

    console = Console(highlight=False)
    checks = diagnose(load_config(profile, overrides=_overrides(settings)))
    for check in checks:
        verdict = "[OK]  " if check.ok else "[FAIL]"
        console.print(f"{verdict} {check.name}: {check.found}", markup=False, soft_wrap=True)
        if check.fix:
            console.print(f"       fix: {check.fix}", markup=False, soft_wrap=True)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@commands.command("pretrain-nano", rich_help_panel=MODELS)
def pretrain_nano_command(
    out: Annotated[
        Path, typer.Option(help="Folder of the model; an interrupted pretraining resumes.")
    ] = Path("data/models/lore-nano"),
    verticals: Annotated[
        list[str], typer.Option("--vertical", help="Folder under data/verticals; may be repeated.")
    ] = ["apparel_home", "beauty_care"],  # noqa: B006 - typer copies it
    documents: Annotated[int, typer.Option(min=1, help="How many documents to read, once each.")] = 224_000,
    seed: Seed = 17,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Products in bfloat16; only faster on CPUs with AMX.")
    ] = False,
) -> None:
    """Pretrain the bundled base model: about 70 minutes for 224,000 documents on two quiet cores."""
    import torch

    from lore_lib.training.nano import pretrain
    from lore_lib.vertical.definition import load_vertical

    torch.set_num_threads(threads)
    typer.echo(pretrain([load_vertical(name) for name in verticals], out, documents, seed, bf16=bf16))


@commands.command("convert-gguf", rich_help_panel=MODELS)
def convert_gguf_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .gguf file of an instruction-tuned model.")],
    out: Annotated[Path, typer.Option(help="Folder of the model; it must not exist yet.")],
) -> None:
    """Turn a GGUF file into a model folder that can be tuned: then --set model.base=FOLDER."""
    from lore_lib.training.convert import convert_gguf

    typer.echo(convert_gguf(file, out))


@commands.command("generate", rich_help_panel=DATA)
def generate_command(
    items: Annotated[int, typer.Option(help="At least so many items; whole queries of 6 items are made.")],
    out: Annotated[Path, typer.Option(help="Folder for the four tables; it must hold none of them yet.")],
    vertical: Vertical = "apparel_home",
    seed: Seed = 17,
    label_noise: Annotated[
        float, typer.Option(min=0, max=1, help="Share of train pairs labelled one level off.")
    ] = 0.0,
) -> None:
    """Write a synthetic world of any size as Parquet, in bounded memory."""
    from rich.progress import Progress as Bar

    from lore_lib.vertical.definition import load_vertical, verticals_folder
    from lore_lib.vertical.stream import stream_tables
    from lore_lib.viz.report import format_seconds

    console = Console(highlight=False)
    start = time.monotonic()
    with Bar(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("items", total=items)
        written = stream_tables(
            load_vertical(vertical),
            out,
            items,
            seed,
            label_noise=label_noise,
            watch=lambda made: bar.update(task, completed=made),
        )
    rows = ", ".join(f"{name} {count:,}" for name, count in written.items())
    took = format_seconds(time.monotonic() - start)
    console.print(f"wrote {out}: {rows} rows in {took}", markup=False, soft_wrap=True)
    home = verticals_folder() / vertical
    move = "" if out.resolve() == home else f"move the four files into {home}, then "
    console.print(
        f"next: {move}'lore run --vertical {vertical}' reads them; see data/README.md",
        markup=False,
        soft_wrap=True,
    )


@commands.command("synthesise", rich_help_panel=DATA)
def synthesise_command(
    profile: Profile = "demo",
    vertical: Vertical = "apparel_home",
    run: Run = "",
    seed: Seed = 17,
    arm: Annotated[str, typer.Option(help="direct, naive, progressive, or 'without knowledge' etc.")] = (
        "progressive"
    ),
    engine: Annotated[str, typer.Option(help="local (this process) or ray (Ray Data over workers).")] = "",
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0 = runtime.workers.")] = 0,
    source: Annotated[
        Path | None, typer.Option("--from", help="Folder with the tables; the run's 01_features by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the traces; outputs/<run>/synthesis/<arm> by default.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Write chains of thought for any number of pairs; an interrupted synthesis resumes."""
    import json

    from lore_lib.config import load_config, require_built
    from lore_lib.cot.batch import prepare_batch, run_batch
    from lore_lib.cot.synthesis import STAGES_OF
    from lore_lib.errors import nearest
    from lore_lib.run.stage import run_folder

    if arm not in ("direct", *STAGES_OF):
        raise ConfigError(f"unknown arm {arm!r}; {nearest(arm, ('direct', *STAGES_OF))}")
    chosen: dict[str, Any] = {"runtime.engine": engine} if engine else {}
    chosen |= {"runtime.workers": workers} if workers else {}
    config = load_config(profile, vertical, run, seed, _overrides(settings) | chosen)
    require_built(config)
    home = run_folder(config)
    folder = out or home / "synthesis" / arm.replace(" ", "-")
    start = time.monotonic()
    manifest = run_batch(prepare_batch(folder, source or home / "01_features", config, arm))
    counted = json.loads(manifest.read_text(encoding="utf-8"))  # the traces need not fit into memory
    reasons, tokens = counted["reasons"], counted["tokens"]
    for reason, count in reasons.items():
        typer.echo(f"{reason}: {count:,}")
    read, wrote = tokens["prompt_tokens"], tokens["completion_tokens"]
    if read + wrote:
        cost = (read * config.cot.teacher_prompt_price + wrote * config.cot.teacher_completion_price) / 1e6
        typer.echo(f"tokens: {read:,} read, {wrote:,} written, cached replies included; cost {cost:,.2f}")
    total, kept = sum(reasons.values()), reasons.get("accepted", 0) + reasons.get("repaired", 0)
    rate = total / max(time.monotonic() - start, 1e-9)
    typer.echo(f"{kept:,} of {total:,} chains kept, {rate:,.0f} a second; {manifest}")


@commands.command("build-benchmark", rich_help_panel=BENCHMARK)
def build_benchmark_command(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the files and their card; data/benchmarks/rair-mini, or own."),
    ] = None,
    verticals: Annotated[
        list[str], typer.Option("--vertical", help="Folder under data/verticals; may be repeated.")
    ] = ["apparel_home", "beauty_care", "toys_digital"],  # noqa: B006 - typer copies it
    intents: Annotated[
        str,
        typer.Option(help="Of your queries: told (by their table), rules, openai (rair.intents_model)."),
    ] = "",
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Answers of the judge that 'hard' pairs defeat: pair_id, label, for each test pair. "
            "Without: rair.judge_model, else naive Bayes over words."
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="Of your benchmark; raise it when its rows change.")] = "1",
    profile: Profile = "demo",
    settings: Settings = None,
) -> None:
    """Freeze a benchmark: of your own test pairs, or RAIR-mini anew, byte for byte, from a world."""
    from dataclasses import asdict

    from lore_lib.artifacts import outputs_root
    from lore_lib.config import load_config, require_built
    from lore_lib.rair.benchmark import BUNDLED, benchmarks_folder, read_answers, save_all
    from lore_lib.rair.builder import Recipe, build_mini
    from lore_lib.rair.own import OWN, build_own, has_tables
    from lore_lib.vertical.definition import load_vertical
    from lore_lib.vertical.tables import load_tables

    own = [name for name in verticals if has_tables(load_vertical(name))]
    if own and own != verticals:
        raise ConfigError(
            f"{', '.join(own)} has tables of its own and {', '.join(set(verticals) - set(own))} has a world: "
            "they are built by different recipes; build them one by one"
        )
    folder = out or benchmarks_folder() / (OWN if own else BUNDLED)
    recipe, cache, built = Recipe(), outputs_root() / "benchmark-replies", []
    for name in verticals:
        if not own:
            built.append(build_mini(name, recipe))
            continue
        chosen = {"rair.intents": intents} if intents else {}
        config = load_config(profile, name, overrides={**_overrides(settings), **chosen})
        require_built(config)
        vertical = load_vertical(name)
        tables = load_tables(vertical, config.world, config.seed)
        answers = read_answers(reference) if reference else None
        made = build_own(config, vertical, tables, cache, f"{folder.name}/{name}", version, answers)
        built.append(made.benchmark)
        for note in made.notes:
            typer.echo(note)
    for benchmark in built:
        typer.echo(f"{benchmark.reference}: {benchmark.counts()}")
    typer.echo(f"wrote {save_all(built, folder, asdict(recipe))}")


@commands.command("score", rich_help_panel=BENCHMARK)
def score_command(
    answers: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines, CSV or Parquet: pair_id, label, benchmark.")
    ],
    benchmark: Annotated[
        str, typer.Option(help="Name of a bundled benchmark, such as rair-mini/apparel_home.")
    ] = "rair-mini/apparel_home",
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON in the shape of lm-evaluation-harness instead.")
    ] = False,
    seed: Seed = 17,
) -> None:
    """Score any system's answers on a bundled benchmark; answers that do not fit it are refused."""
    from lore_lib.rair.benchmark import load_benchmark, read_answers
    from lore_lib.rair.exports import harness_results
    from lore_lib.rair.metrics import score_table
    from lore_lib.rng import generator

    known = load_benchmark(benchmark)
    table = score_table(known.judged(read_answers(answers)), 1000, generator(seed, "score", known.reference))
    if json:
        typer.echo(harness_results(table, known, answers.stem))
        return
    typer.echo(f"{known.reference}, 95 % intervals over queries")
    for (subset, n), part in table.groupby(["subset", "n"], sort=False):
        cells = (f"{row.metric} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in part.itertuples())
        typer.echo(f"{subset} (n={n}): " + ", ".join(cells))


@commands.command("evaluate-rair", rich_help_panel=BENCHMARK)
def evaluate_rair_command(
    out: Annotated[
        Path, typer.Option(help="Folder for the answers; an interrupted evaluation goes on in it.")
    ],
    folder: Annotated[
        Path | None, typer.Option(help="Local copy of chenJi/RAIR; without it the hub is streamed.")
    ] = None,
    profile: Profile = "small",
    limit: Annotated[int, typer.Option(min=0, help="Stop after about so many pairs; 0 = all.")] = 0,
    with_rules: Annotated[
        bool, typer.Option("--with-rules", help="Show the annotators' rules, which mostly name the level.")
    ] = False,
    settings: Settings = None,
) -> None:
    """Judge the official RAIR rows with the profile's model (--set model.base=...), in Chinese prompts."""
    from lore_lib.config import load_config
    from lore_lib.rair.metrics import readable, score_table
    from lore_lib.rair.official import judge_official, official_blocks
    from lore_lib.rair.systems import endpoint_judge, language_model
    from lore_lib.rng import generator
    from lore_lib.sampling.engine import load_tokenizer

    config = load_config(profile, overrides={"features.template": "zh", **_overrides(settings)})
    judge = language_model(config, config.model.base, config.model.base)
    system = endpoint_judge(config, out / "replies.sqlite") if config.rair.judge_model else judge
    tokenizer = None if config.rair.judge_model else load_tokenizer(config.model.base)
    blocks = official_blocks(folder, config.features, tokenizer, with_rules=with_rules)
    judged = judge_official([system], blocks, out, limit=limit)[system.name]
    if with_rules:
        shown = f"rules shown; {judged.names_label.mean():.1%} of them name the gold level and no other"
        typer.echo(shown)
    rng = generator(config.seed, "evaluate-rair")
    scored = score_table(judged, config.rair.bootstrap, rng).rename(columns={"subset": "system"})
    typer.echo(f"{system.name}: {len(judged):,} pairs, 95 % intervals over queries")
    typer.echo(readable(scored).to_string())


LEFT_SHOWN = 50
"""Rows left out by choice that ``lore validate`` prints; notebook 01 writes all of them."""


@commands.command("validate", rich_help_panel=DATA)
def validate_command(
    vertical: Annotated[
        str, typer.Argument(metavar="PATH|NAME", help="A vertical.yaml, its folder, or its name.")
    ] = "apparel_home",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the file instead.")
    ] = False,
) -> None:
    """List everything that is wrong with a vertical and its tables, as file:line: field: message."""
    from lore_lib.vertical.adapters.rows import ReadReport
    from lore_lib.vertical.authoring import counts, find_vertical, json_schema, validate

    if schema:
        typer.echo(json_schema())
        return
    path = find_vertical(vertical)
    report = ReadReport()
    checked = validate(path, report)
    for problem in checked.problems:
        typer.echo(problem)
    for left in report.listed[:LEFT_SHOWN]:
        typer.echo(f"by choice: {left}")
    if report.counts:
        typer.echo(f"left out, cut or changed by choice: {report}")
    if checked.value is None:
        typer.echo(f"{path}: {checked.summary}")
        raise typer.Exit(1)
    typer.echo(f"OK {path}: " + ", ".join(f"{name} {n}" for name, n in counts(checked.value).items()))


@commands.command("init-vertical", rich_help_panel=DATA)
def init_vertical_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Folder name of the new vertical.")],
    source: Annotated[
        str, typer.Option("--from", metavar="VERTICAL", help="Copy this one instead of the template.")
    ] = "",
) -> None:
    """Start a vertical of your own from a commented template."""
    from lore_lib.vertical.authoring import init_vertical

    typer.echo(f"wrote {init_vertical(name, source)}")
    typer.echo(f"next: edit it, run 'lore validate {name}', then 'lore run --vertical {name}'")


@commands.command("serve", rich_help_panel=SERVING)
def serve_command(
    run: Made = "demo",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    settings: Settings = None,
) -> None:
    """Serve a run over HTTP: cached scores, the ONNX student, the LLM (settings service.*)."""
    from lore_lib.serving.app import build_app, server
    from lore_lib.serving.bundle import open_bundle, start_service

    bundle = open_bundle(run, _overrides(settings))
    app = build_app(lambda: start_service(bundle, tell=typer.echo), bundle.config.service)
    serving = server(app, host, port, bundle.config.service.deadline_ms / 1000 + 1)
    listening = serving.config.bind_socket()
    url = f"http://{host}:{listening.getsockname()[1]}"
    typer.echo(f"serving run {run} ({len(bundle.catalogue):,} items) at {url}; Ctrl-C ends it")
    try:
        serving.run(sockets=[listening])
    except KeyboardInterrupt:  # the server has finished what was at work, and then tells of the signal again
        typer.echo("stopped")


@commands.command("load", rich_help_panel=SERVING)
def load_command(
    trace: Annotated[Path, typer.Option(help="Parquet file: time_s (rising from 0), query, item_id.")],
    url: Annotated[str, typer.Option(help="Of a running service.")] = "http://127.0.0.1:8080",
    out: Annotated[Path | None, typer.Option(help="Parquet file for one row per answer.")] = None,
    connections: Annotated[int, typer.Option(min=1, help="Held open at most.")] = 1000,
    in_turn: Annotated[int, typer.Option(min=0, help="First rows to ask one at a time beforehand.")] = 0,
) -> None:
    """Replay a trace at a running service, each request at its moment, and time every answer."""
    import asyncio

    from lore_lib.artifacts import read_parquet, write_parquet
    from lore_lib.serving.load import replay, summary

    answers = asyncio.run(replay(url, read_parquet(trace), connections, in_turn))
    if out:
        write_parquet(answers, out)
    for name, value in summary(answers.iloc[in_turn:]).items():
        typer.echo(f"{name:15} {value:,.3f}")


@commands.command("kernel", rich_help_panel=RUNS)
def kernel_command() -> None:
    """Install the notebook kernel "lore" into this environment (lore run does it as well)."""
    from lore_lib.run.runner import install_kernel

    typer.echo(install_kernel())


def app() -> None:
    """The command line; exit status 0 done, 1 failed, 2 a wrong setting, 130 interrupted.

    A LoreError, or a file that cannot be used, is shown as its text, never as a traceback.
    """
    if sys.platform == "win32":
        sys.exit("lore: it locks folders and ends processes as POSIX does; on Windows run it inside WSL")
    signal.signal(signal.SIGTERM, _terminated)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what a terminal's encoding lacks is shown by its number
            stream.reconfigure(errors="backslashreplace")
    errors = Console(stderr=True, highlight=False)
    try:
        commands(standalone_mode=True)
    except LoreError as error:
        errors.print(f"lore: {printable(str(error))}", markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lore_lib"):
            raise
        told = f"lore: package {error.name} is missing; the extras of pyproject.toml say what it belongs to"
        errors.print(
            f'{told}, and pip install -e ".[dev]" brings all but GPUs need', markup=False, soft_wrap=True
        )
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        told = f"lore: {error.filename}: {error.strerror or error}"
        errors.print(printable(told), markup=False, soft_wrap=True)
        sys.exit(1)


class _Lines:
    """One line per stage; on a terminal, a live line while it runs."""

    def __init__(self, console: Console):
        self._console = console
        self._live: Status | None = console.status("starting") if console.is_terminal else None

    def __enter__(self) -> "_Lines":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, progress: "Progress") -> None:
        """Take one progress report of the runner."""
        from lore_lib.viz.report import format_seconds

        line = (
            f"[{progress.position}/{progress.stages}] {progress.stage}  {format_seconds(progress.seconds)} "
            f"(expected ~{format_seconds(60 * progress.expected_minutes)})"
        )
        if progress.outcome:
            self._console.print(f"{line} {progress.outcome}", markup=False, soft_wrap=True)
        elif self._live:
            self._live.update(f"\\{line} cell {progress.cell}/{progress.cells}")


def _console() -> Console:
    """Where results are printed; a file or pipe has no width, so tables are not squeezed into 80 columns."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def _overrides(settings: list[str] | None) -> dict[str, Any]:
    from lore_lib.config import parse_setting

    return dict(parse_setting(text) for text in settings or ())


def _terminated(number: int, frame: FrameType | None) -> None:
    """A polite kill ends the run as Ctrl-C does, so that no notebook is left running."""
    raise KeyboardInterrupt
