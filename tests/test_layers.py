"""The rules of the structure: which folder may import which, and where each heavy dependency has its one door."""

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "envs": set(),
    "reward": {"envs"},
    "actors": {"envs", "reward"},
    "learner": {"envs"},
    "cluster": {"envs", "reward", "actors", "learner"},
}
"""The layers: a folder of the top level and the ones below it."""
DOORS = {
    "envs": set(),
    "envs/adapters": {"envs"},
    "reward": {"envs"},
    "reward/evaluators": {"envs"},
    "reward/judges": {"envs", "reward", "reward/evaluators"},
    "actors/lora": set(),
    "actors/nccl": set(),
    "actors": {"envs", "reward", "actors/lora", "actors/nccl"},
    "actors/agents": {"envs", "reward", "actors"},
    "actors/checks": {"envs", "reward", "actors"},
    "learner/batch": {"envs"},
    "learner/credit": {"envs"},
    "learner/credit/strategies": {"envs", "learner/credit"},
    "learner/first_policy": {"envs"},
    "learner/loss": {"learner/batch"},
    "learner/health": {"envs", "learner/batch", "learner/credit"},
    "learner": {
        "envs", "learner/batch", "learner/credit", "learner/credit/strategies", "learner/health", "learner/loss",
    },
    "learner/zero": {"learner", "learner/batch", "learner/loss"},
    "cluster/base": set(),
    "cluster/replay": {"envs", "learner/credit", "cluster/base"},
    "cluster/runlog": {
        "envs", "reward/evaluators", "learner", "learner/credit", "cluster/base", "cluster/replay",
    },
    "cluster/trajectories": {
        "envs", "reward/evaluators", "actors", "learner", "cluster/base", "cluster/replay", "cluster/runlog",
    },
    "cluster/tracing": {"reward/evaluators", "cluster/trajectories"},
    "cluster/trackers": {"cluster/base", "cluster/runlog"},
    "cluster/hosts": {"cluster/base", "cluster/placement", "cluster/replay"},
    "cluster/pools": {
        "envs", "reward", "actors", "actors/agents", "actors/lora", "actors/nccl", "learner", "learner/batch",
        "learner/credit", "learner/zero", "cluster/base", "cluster/hosts", "cluster/replay", "cluster/trajectories",
    },
    "cluster/placement": {
        "actors/lora", "learner", "learner/credit", "learner/credit/strategies", "learner/first_policy",
        "learner/zero", "cluster/base", "cluster/settings",
    },
    "cluster/settings": {
        "envs", "actors", "actors/agents", "learner", "learner/credit", "learner/credit/strategies",
        "learner/first_policy", "learner/health", "learner/loss", "cluster/base", "cluster/replay", "cluster/runlog",
        "cluster/trajectories", "cluster/tracing", "cluster/trackers",
    },
    "cluster/workbench": {
        "envs", "actors/agents", "learner/credit", "learner/credit/strategies", "cluster/base", "cluster/runlog",
        "cluster/settings",
    },
    "cluster/projects": {"cluster/base"},
    "cluster/live": {
        "envs", "reward", "actors", "actors/agents", "actors/checks", "learner/first_policy", "cluster/base",
        "cluster/runlog", "cluster/settings",
    },
    "cluster/experiment": {"envs", "learner/zero", "cluster/base", "cluster/runlog", "cluster/settings"},
    "cluster/evaluation": {
        "envs", "reward/evaluators", "reward/judges", "learner/credit", "cluster/base", "cluster/runlog",
        "cluster/settings", "cluster/trajectories",
    },
    "cluster/registry": {
        "reward/evaluators", "actors", "cluster/base", "cluster/runlog", "cluster/settings", "cluster/evaluation",
        "cluster/trackers",
    },
    "cluster/viewer": {
        "envs", "learner/credit", "learner/credit/strategies", "cluster/base", "cluster/runlog", "cluster/trajectories",
        "cluster/workbench", "cluster/evaluation",
    },
    "cluster": {
        "envs", "reward", "reward/evaluators", "reward/judges", "actors", "actors/agents", "actors/checks",
        "learner", "learner/batch", "learner/credit",
        "learner/credit/strategies", "learner/first_policy", "learner/health", "learner/loss", "learner/zero",
        "cluster/base", "cluster/replay", "cluster/runlog", "cluster/trajectories", "cluster/tracing",
        "cluster/trackers", "cluster/placement", "cluster/hosts", "cluster/pools", "cluster/settings",
        "cluster/workbench", "cluster/experiment", "cluster/evaluation", "cluster/projects", "cluster/live",
        "cluster/registry", "cluster/viewer",
    },
}  # fmt: skip
"""The rooms: a folder of code and the ones it imports, each of them in use."""
FRONT_DOORS = {
    "vllm": {
        "actors/vllm.py",
        "actors/transfer.py",
        "actors/tool_parsing.py",
        "actors/nccl/sender.py",
        "actors/nccl/receiver.py",
    },
    "deepspeed": {"learner/zero/zero_model.py"},
    "peft": {"learner/zero/lora.py"},
    "redis": {
        "cluster/replay/client.py",
        "cluster/replay/redis_server.py",
    },
    "ray": {
        "cluster/pools/engines.py",
        "cluster/pools/learner_process.py",
        "cluster/pools/engine_pool.py",
        "cluster/pools/engine_slot.py",
        "cluster/pools/weights.py",
        "cluster/pools/stored_weights.py",
        "cluster/pools/workers.py",
        "cluster/pools/learners.py",
        "cluster/pools/trial.py",
        "cluster/hosts/check.py",
        "cluster/hosts/places.py",
        "cluster/hosts/ray_start.py",
    },
    "prometheus_client": {
        "cluster/pools/engine_process.py",
        "cluster/registry/metrics.py",
        "cluster/runlog/metrics.py",
        "cluster/runlog/series.py",
    },
    "pyarrow": {
        "cluster/trajectories/table.py",
        "cluster/trajectories/parts.py",
        "cluster/trajectories/reader.py",
    },
    "opentelemetry": {"cluster/tracing/tracing.py"},
    "duckdb": {"cluster/viewer/recorded.py"},
    "fastapi": {"cluster/viewer/app.py"},
    "uvicorn": {"cluster/viewer/server.py"},
    "jinja2": {"cluster/viewer/pages.py"},
    "mcp": {"envs/mcp_tool_env.py"},
    "wandb": {"cluster/trackers/wandb.py"},
    "mlflow": {"cluster/registry/mlflow_store.py", "cluster/trackers/mlflow.py"},
}
MOST_LINES = 300
MOST_FILES = 16
HEAVY = ("torch", "ray", "vllm", "redis", "deepspeed", "transformers", "gymnasium", "prometheus_client", "pyarrow")

EXTRAS = ("tensorboard", "wandb", "mlflow")
"""What only a run loads whose configuration asks for it."""


def files(root: Path = ROOT) -> Iterator[tuple[str, Path]]:
    """The code and the layer that each file belongs to."""
    for layer in MAY_IMPORT:
        for path in sorted((root / layer).rglob("*.py")):
            yield layer, path


def imports(path: Path) -> Iterator[str]:
    """The modules that a file names; of `from a import b` both `a` and `a.b`, for `b` may be a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """The room that a module of ours lies in, None for others and for what is no module."""
    if not name.startswith("milepost."):
        return None
    path = ROOT.joinpath(*name.split(".")[1:])
    return str(path.parent.relative_to(ROOT)) if path.with_suffix(".py").is_file() else None


def doors(root: Path = ROOT) -> Iterator[tuple[Path, str, str]]:
    """Every import from one room into another: the file, its room, the other room."""
    for _, path in files(root):
        room = str(path.parent.relative_to(root))
        for name in imports(path):
            other = room_of(name)
            if other is not None and other != room:
                yield path.relative_to(root), room, other


def wrong_imports(root: Path = ROOT) -> list[str]:
    """What is imported against the layers or the rooms."""
    against_layers = [
        f"{path.relative_to(root)}: {name}"
        for layer, path in files(root)
        for name in imports(path)
        if name.split(".")[0] in MAY_IMPORT
        or (name.startswith("milepost.") and name.split(".")[1] not in MAY_IMPORT[layer] | {layer})
    ]
    return against_layers + [f"{file}: {other}" for file, room, other in doors(root) if other not in DOORS[room]]


def test_a_room_imports_only_rooms_below_it() -> None:
    assert not wrong_imports()
    graphlib.TopologicalSorter(DOORS).prepare()  # raises for a circle


def test_every_folder_of_code_is_a_room_and_every_door_is_used() -> None:
    assert {str(path.parent.relative_to(ROOT)) for _, path in files()} == DOORS.keys()
    used = {(room, other) for _, room, other in doors()}
    assert {(room, other) for room, others in DOORS.items() for other in others} == used


def test_an_import_against_any_door_is_found(tmp_path: Path) -> None:
    some_module = {
        room: next(path for path in sorted((ROOT / room).glob("*.py")) if path.stem != "__init__") for room in DOORS
    }
    against = [(room, other) for room in DOORS for other in DOORS.keys() - DOORS[room] - {room}]
    for room, other in against:
        package = "milepost." + other.replace("/", ".")
        for way, line in (
            ("whole", f"import {package}.{some_module[other].stem}"),
            ("name", f"from {package}.{some_module[other].stem} import anything"),
            ("module", f"def late():\n    from {package} import {some_module[other].stem}"),
        ):
            file = tmp_path / room / f"{other.replace('/', '_')}_{way}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(line + "\n")
    found = {line.split(":")[0] for line in wrong_imports(tmp_path)}
    assert found == {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py")}
    assert len(found) == 3 * len(against)


def test_every_heavy_dependency_has_one_front_door() -> None:
    found = {(name.split(".")[0], str(path.relative_to(ROOT))) for _, path in files() for name in imports(path)}
    assert not [(name, file) for name, file in found if name in FRONT_DOORS and file not in FRONT_DOORS[name]]
    # A door that nobody uses is a stale rule.
    assert {(name, door) for name, doors in FRONT_DOORS.items() for door in doors} <= found


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("milepost.envs.types", HEAVY),
        ("milepost.cluster.settings.config", ("transformers", "ray", "vllm", "deepspeed", "pyarrow", *EXTRAS)),
        ("milepost.cluster.train", ("vllm", "deepspeed", *EXTRAS)),
        ("milepost.cluster.viewer.server", ("torch", "transformers", "ray", "vllm", "deepspeed")),
    ],
)
def test_a_process_loads_only_the_frameworks_it_works_with(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {unwanted!r} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert shown.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("word", ["pickle.load", "yaml.load", "shell=True", "trust_remote_code=True"])
def test_nothing_that_runs_foreign_code_is_called(word: str) -> None:
    assert not [str(path.relative_to(ROOT)) for _, path in files() if word in path.read_text()]


def open_to_foreign_code(source: str) -> Iterator[str]:
    """Calls that load something from a model folder without refusing its code: there transformers asks on stdin."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("from_pretrained", "from_config", "AsyncEngineArgs"):
            said = [key.value for key in node.keywords if key.arg == "trust_remote_code"]
            if not (said and isinstance(said[0], ast.Constant) and said[0].value is False):
                yield f"line {node.lineno}: {name}"


def test_whatever_loads_from_a_model_folder_refuses_its_code() -> None:
    paths = [path for _, path in files()] + sorted((ROOT / "examples").glob("*.py"))
    assert not [f"{path.name}: {call}" for path in paths for call in open_to_foreign_code(path.read_text())]
    for careless in ("A.from_pretrained(x)", "A.from_pretrained(x, **source)", "A.from_config(trust_remote_code=None)"):
        assert list(open_to_foreign_code(careless))


def test_files_and_folders_stay_small() -> None:
    folders = (*MAY_IMPORT, "tests", "examples")
    found = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    long = {str(path): n for path in found if (n := (ROOT / path).read_text().count("\n")) > MOST_LINES}
    full = {str(folder): n for folder, n in Counter(path.parent for path in found).items() if n > MOST_FILES}
    assert not long
    assert not full
