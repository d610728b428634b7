"""What a worker's process is started with."""

from pathlib import Path
from typing import Any

from milepost.actors.agents.config import AgentConfig
from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.actors.worker import ActorConfig
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.pools.worker_process import WorkerSpec
from milepost.cluster.replay.buffer import BufferConfig
from milepost.envs.scenarios import ScenarioConfig


def worker_spec(**changes: Any) -> WorkerSpec:
    values: dict[str, Any] = {
        "run_id": "run",
        "redis_url": "redis://localhost:1/0",
        "model": Path("model"),
        "env": [ScenarioConfig()],
        "agent": AgentConfig(),
        "actors": ActorConfig(),
        "engine": EngineConfig(),
        "sampling": SamplingConfig(),
        "buffer": BufferConfig(),
        "reward_path": "",
        "group_size": 2,
        "restarts": RestartConfig(),
    }
    return WorkerSpec(**(values | changes))
