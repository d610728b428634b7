"""The trial of an update at the start, on engines that serve a real small model and take new weights more or less."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from ray.exceptions import RayActorError, RayTaskError

from milepost.actors.engine import Completion, EngineConfig, SamplingConfig
from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.base.files import file_sha256
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.base.weight_folders import WeightFolder
from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.engine_process import EngineSpec
from milepost.cluster.pools.trial import Trial, require_updates
from milepost.envs.types import VersionSpan
from milepost.learner.zero.policy import load_policy
from tests.cluster.pools.hosts.pool_rig import HostPlace

Take = Callable[[str, torch.Tensor], torch.Tensor | None]
VERSION = 3
DOWN = "model.layers.*.mlp.down_proj.weight"


class ServingModel:
    """An engine's actor over a model in this process; `take` makes what it loads of what it is sent."""

    def __init__(self, model: Path, take: Take) -> None:
        self.model, self.take, self.version = load_policy(model).requires_grad_(False), take, VERSION
        self.froze: list[str] = []
        for name in ("start", "verify", "pause", "sleep", "load", "commit", "generate"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    async def _start(self) -> int:
        return self.version

    async def _pause(self) -> None:
        self.froze.append("pause")

    async def _sleep(self) -> None:
        self.froze.append("sleep")

    async def _verify(self, path: str, sha256: str) -> None:
        assert file_sha256(Path(path)) == sha256

    async def _load(self, path: str) -> None:
        own = dict(self.model.named_parameters())
        for name, tensor in safetensors.torch.load_file(path).items():
            taken = self.take(name, tensor)
            if taken is not None:
                own[name].copy_(taken)

    async def _commit(self, version: int, _rollback: bool) -> None:
        self.version = version

    async def _generate(self, prompt: list[int]) -> Completion:
        ids = [5, 6, 7, 8]
        logits = self.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
        spans = [VersionSpan(version=self.version, start=0, end=len(ids))]
        return Completion(response_ids=ids, logprobs=logprobs, versions=spans, stopped=False)


def attempt(model: Path, take: Take, monkeypatch: pytest.MonkeyPatch, *, sleeps: bool = False) -> ServingModel:
    """One trial with one engine; it is returned as the trial leaves it."""
    serving = ServingModel(model, take)
    monkeypatch.setattr(EnginePool, "_launch", lambda _pool, _spec, _index: serving)
    spec = EngineSpec(
        model=model,
        version=VERSION,
        config=EngineConfig(),
        sampling=SamplingConfig(),
        stop_token_ids=(),
        seed=0,
        restarts=RestartConfig(),
    )
    prompts = [[k, 9, 10] for k in range(20, 24)]
    trial = Trial(
        model=model, version=VERSION, prompts=prompts, temperature=1.0, limit=1e-3, timeout_s=20, transfer="file",
        sleeps=sleeps,
    )  # fmt: skip

    async def run() -> None:
        pool = EnginePool(spec, HostPlace())
        await pool.start()
        await require_updates(trial, pool, weights)

    weights = WeightFolder("trial")
    try:
        asyncio.run(run())
        assert not list(weights.path.iterdir()), "the trial's file would stay in shared memory"
    finally:
        weights.close()
    return serving


def test_engines_that_take_all_tensors_are_left_with_the_true_weights_under_their_version(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    serving = attempt(tiny_policy, lambda _, tensor: seen.append(tensor) or tensor, monkeypatch)
    true = dict(load_policy(tiny_policy).named_parameters())
    assert all(torch.equal(tensor, true[name]) for name, tensor in serving.model.named_parameters())
    assert serving.version == VERSION
    assert len(seen) == 2 * len(true)
    # the first publication differs from the second by a tenth of each tensor's size, and 0.01
    moved, still = seen[0], seen[len(true)]
    size = 0.1 * still.square().mean().sqrt() + 0.01
    assert (moved - still).square().mean().sqrt() == pytest.approx(float(size), rel=0.05)


@pytest.mark.parametrize(("sleeps", "how"), [(False, "pause"), (True, "sleep")])
def test_an_engine_that_is_to_sleep_is_tried_asleep(
    sleeps: bool, how: str, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attempt(tiny_policy, lambda _, tensor: tensor, monkeypatch, sleeps=sleeps).froze == [how, how]


def test_the_tensors_that_do_not_arrive_are_named(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        return None if "down_proj" in name or name == "model.norm.weight" else tensor

    with pytest.raises(ConfigError, match=r"family 'llama'.*differ by \S+ nats.*because of ") as refused:
        attempt(tiny_policy, stale, monkeypatch)
    assert str(refused.value).split("because of ")[1].startswith(f"{DOWN}, model.norm.weight; docs/models.md")


def test_an_engine_that_spoils_whatever_it_is_sent_is_no_single_tensors_fault(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="also where its own weights are sent again"):
        attempt(tiny_policy, lambda _, tensor: tensor.roll(1, -1), monkeypatch)


def test_log_probs_that_are_no_numbers_are_no_agreement(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="also where its own weights are sent again"):
        attempt(tiny_policy, lambda _, tensor: tensor * torch.nan, monkeypatch)


@pytest.mark.parametrize(
    ("error", "exit_type", "line"),
    [
        (RayTaskError("load", "trace", AttributeError("no lm_head")), ConfigError, "'llama' .*AttributeError: no lm_h"),
        (RayActorError(), DependencyLost, "an engine was lost in a trial update"),
    ],
)
def test_an_update_that_fails_is_told_from_an_engine_that_dies(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, exit_type: type[Exception], line: str
) -> None:
    def fails(_name: str, _tensor: Any) -> torch.Tensor:
        raise error

    with pytest.raises(exit_type, match=line):
        attempt(tiny_policy, fails, monkeypatch)
