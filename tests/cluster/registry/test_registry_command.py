"""`milepost policies | promote | rollback | history` as a person types them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from milepost.cluster.evaluation import store
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.saved_policy import digest
from tests.cluster.evaluation.played_results import results
from tests.cluster.registry.promoted import gate, played, policy

pytestmark = pytest.mark.usefixtures("own_folder")


def a_run(folder: Path, *agents: str) -> str:
    """A run with a policy of version 3 and results of it; its id."""
    run = runs.create(folder / "runs", "desk")
    run.resolved.write_text("")
    made = policy(run.policy, run.run_id)
    (made / "milepost.json").write_text(json.dumps({"policy_version": 3, "run": run.run_id}))
    (place := run.path / store.EVALUATIONS / "1").mkdir(parents=True)
    store.write(results(*agents, episodes=2, source=run.run_id, sha256=digest(made)), place)
    return run.run_id


def test_a_policy_is_promoted_listed_rolled_back_and_told_of(call, own_folder: Path) -> None:
    asked, run = gate(own_folder), a_run(own_folder, "sound")
    assert call("promote", run, "--gate", asked) == (0, f"version 1 is the champion: {run}\n", "")
    assert (own_folder / "registry" / "versions" / "1" / "resolved.toml").is_file()
    second = played(own_folder / "b", "sound", "idle")
    code, out, _ = call("promote", second.parent, "--gate", asked)
    assert (code, out) == (0, f"version 2 is the champion: {own_folder / 'b'}\n")
    assert call("rollback", "--reason", "slow\nat night") == (
        0,
        "version 1 is the champion again, in place of version 2\n",
        "",
    )
    code, out, _ = call("policies")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["version", "run", "policy", "version", "digest", "suite", "results"]
    assert rows[1][:4] == ["*", "1", run, "3"]
    assert rows[2][0] == "2"
    assert "success 0.5" in " ".join(out.split())
    code, out, _ = call("history", "--window", 0)
    lines = out.splitlines()
    assert lines[0].endswith(f"promoted version 1, the first champion: {run}, policy version 3")
    assert lines[2].endswith("rolled back to version 1 from 2 after 0.0 h: slow at night")
    assert lines[3] == "rollback rate: 0 of 2 promotions taken back within 0 days, 0.0% [0.0%, 65.8%]"
    assert call("history")[1].splitlines()[3] == "rollback rate: no promotion is 7 days old yet"


def test_policies_are_copied_into_mlflow_from_the_day_somebody_asks(call, own_folder: Path) -> None:
    asked, place = gate(own_folder), (own_folder / "mlruns").as_uri()
    call("promote", played(own_folder / "a", "sound").parent, "--gate", asked)
    code, out, err = call("policies", "--mlflow", place)
    assert (code, out.splitlines()[-1]) == (0, f"MLflow at {place} holds them as the model milepost; 1 copied")
    (own_folder / "registry" / "mlflow.json").write_text('{"uri": "nonsense://x", "model": "milepost"}')
    code, out, err = call("promote", played(own_folder / "b", "sound").parent, "--gate", asked)
    assert (code, out) == (0, f"version 2 is the champion: {own_folder / 'b'}\n")
    assert err.startswith("milepost: MLflow at nonsense://x did not take the registry")


def test_a_refusal_names_every_limit_ends_with_eight_and_stays_in_the_history(call, own_folder: Path) -> None:
    asked = gate(own_folder, absolute=[{"metric": "success", "limit": 0.5}, {"metric": "steps_p99", "limit": 3}])
    run = a_run(own_folder, "looping")
    code, out, err = call("promote", run, "--gate", asked)
    assert (code, out) == (8, "")
    assert err.splitlines() == [
        f"milepost: {run}, policy version 3, does not pass {asked}: success, all: 0.000 is below the limit of 0.5",
        f"milepost: {run}, policy version 3, does not pass {asked}: steps_p99, all: 7 is above the limit of 3",
    ]
    assert "refused " in call("history")[1]
    assert call("policies")[0] == 2


def test_what_is_not_there_is_one_line_with_the_way_out(call, own_folder: Path) -> None:
    for arguments, said in (
        (("policies",), "registry has no policy yet; milepost promote RUN --gate FILE puts one there"),
        (("history",), "registry has no history yet; milepost promote RUN --gate FILE begins it"),
        (("rollback", "--reason", "x"), "there is no registry registry; milepost promote RUN --gate FILE begins one"),
        (("rollback", "--reason", " "), "rollback --reason: say why, the audit trail keeps it"),
        (("promote", "x.json", "--gate", "gate.toml"), "no run 'x.json' in "),
    ):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"milepost: {said}")
    assert not (own_folder / "registry").exists()


def test_a_changed_trail_is_told_with_its_entry(call, own_folder: Path) -> None:
    call("promote", a_run(own_folder, "sound"), "--gate", gate(own_folder))
    trail = own_folder / "registry" / "audit.jsonl"
    trail.write_text(trail.read_text().replace('"success":1.0', '"success":0.9'))
    for arguments in (("history",), ("policies",), ("rollback", "--reason", "x")):
        code, _, err = call(*arguments)
        assert code == 2
        assert err.startswith("milepost: registry/audit.jsonl: entry 1 was changed: audit.head knows another text; ")


def test_what_cannot_be_served_is_said_before_an_engine_starts(call, own_folder: Path) -> None:
    assert call("serve") == (
        2,
        "",
        "milepost: registry has no champion; milepost promote RUN --gate FILE makes one\n",
    )
    call("promote", a_run(own_folder, "sound"), "--gate", gate(own_folder))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call("serve", "--port", port) == (
            2,
            "",
            f"milepost: serve --port {port}: Address already in use; give another one, or 0 for a free one\n",
        )
