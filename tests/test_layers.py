"""The house rules: which folder may import which, and where each heavy dependency has its one door."""

import ast
import subprocess
import sys
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
FRONT_DOORS = {
    "vllm": {"actors/vllm.py", "actors/transfer.py"},
    "deepspeed": {"learner/engine.py"},
    "redis": {
        "cluster/redis_server.py",
        "cluster/store.py",
        "cluster/ledger.py",
        "cluster/buffer.py",
        "cluster/ready.py",
        "cluster/history.py",
    },
    "ray": {
        "cluster/engines.py",
        "cluster/engine_pool.py",
        "cluster/weights.py",
        "cluster/workers.py",
        "cluster/learners.py",
        "cluster/system.py",
    },
    "prometheus_client": {"cluster/metrics.py"},
}
HEAVY = ("torch", "ray", "vllm", "redis", "deepspeed", "transformers", "gymnasium", "prometheus_client")


def files() -> Iterator[tuple[str, Path]]:
    for folder in MAY_IMPORT:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield folder, path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (
                [f"milepost.{a.name}" for a in node.names] if node.module == "milepost" else [node.module or ""]
            )


def test_a_folder_imports_only_folders_below_it() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for folder, path in files()
        for name in imports(path)
        if name.split(".")[0] in MAY_IMPORT
        or (name.startswith("milepost.") and name.split(".")[1] not in MAY_IMPORT[folder] | {folder})
    ]
    assert not wrong


def test_every_heavy_dependency_has_one_front_door() -> None:
    found = {(name.split(".")[0], str(path.relative_to(ROOT))) for _, path in files() for name in imports(path)}
    assert not [(name, file) for name, file in found if name in FRONT_DOORS and file not in FRONT_DOORS[name]]
    # A door that nobody uses is a stale rule.
    assert {(name, door) for name, doors in FRONT_DOORS.items() for door in doors} <= found


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("milepost.envs.types", HEAVY),
        ("milepost.cluster.train", ("vllm", "deepspeed")),
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


def test_files_stay_small() -> None:
    long = {str(path.relative_to(ROOT)): n for _, path in files() if (n := path.read_text().count("\n")) > 300}
    assert not long
