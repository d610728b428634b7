"""`milepost eval MODEL --config CONFIG`: a model folder is judged before it is played, and named for what it is."""

import json
import shutil
from pathlib import Path

import pytest

from milepost.cluster import evaluate
from milepost.reward.evaluators.summary import Summary

ENV = '[env]\npath = "tests.broken_envs:CountingEnv"\nheldout_size = 4\n[engine]\nmax_model_len = 512\n'
SUMMARY = Summary(
    episodes=8,
    success_rate=0.5,
    success_low=0.2,
    success_high=0.8,
    mean_turns=3,
    invalid_share=0,
    mean_reward=0.5,
    cut_share=0,
    context_full_share=0,
    turns_p50=3,
    turns_p99=4,
    sampled_tokens_mean=20,
    prompt_tokens_mean=100,
)
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def config(own_folder: Path) -> Path:
    path = own_folder / "coin.toml"
    path.write_text(ENV)
    return path


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """The policies and versions that an engine would have been started on."""
    started: list[tuple[Path, int]] = []

    class Started:
        def __init__(self, *_: object) -> None:
            pass

        async def start(self, model: Path, version: int, **_: object) -> None:
            started.append((model, version))

        async def stop(self) -> None:
            pass

    async def evaluated(*_: object) -> Summary:
        return SUMMARY

    monkeypatch.setattr(evaluate, "System", Started)
    monkeypatch.setattr(evaluate, "evaluate", evaluated)
    return started


def test_a_model_folder_is_played_as_version_0_and_told_as_a_run_is(call, config, tiny_policy, played) -> None:
    code, out, _ = call("eval", tiny_policy, "--config", config, "--episodes", 8, "--json")
    assert code == 0
    assert played == [(tiny_policy, 0)]
    result = json.loads(out)
    assert (result["run"], result["policy_version"], result["split"]) == (str(tiny_policy), 0, "heldout")
    assert (result["success"], result["success_ci"], result["episodes"]) == (0.5, [0.2, 0.8], 8)
    _, out, _ = call("eval", tiny_policy, "--config", config)
    assert out == (f"{tiny_policy}, policy version 0, split heldout: success 50.0% [20.0%, 80.0%] in 8 episodes\n")


def test_the_policy_of_a_run_keeps_its_version(call, config, tiny_policy, own_folder, played) -> None:
    policy = shutil.copytree(tiny_policy, own_folder / "policy")
    (policy / "milepost.json").write_text('{"policy_version": 7}')
    assert json.loads(call("eval", policy, "--config", config, "--json")[1])["policy_version"] == 7
    assert played == [(policy, 7)]


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("config.json", "lacks config.json"), ("model.safetensors", "lacks weights"), (None, "there is no folder")],
)
def test_a_folder_that_holds_no_model_is_one_line_and_exit_code_2(
    call, config, tiny_policy, own_folder, played, missing, reason
) -> None:
    folder = own_folder / "model"
    if missing:
        (shutil.copytree(tiny_policy, folder) / missing).unlink()
    code, out, err = call("eval", folder, "--config", config)
    assert (code, out, err.count("\n"), played) == (2, "", 1, [])
    assert reason in err


def test_a_model_folder_without_a_config_is_told_what_it_needs(call, tiny_policy) -> None:
    assert call("eval", tiny_policy) == (
        2,
        "",
        f"milepost: eval {tiny_policy}: a model folder is no run; add --config CONFIG, which says what it plays\n",
    )
