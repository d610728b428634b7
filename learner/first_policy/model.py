"""Which model a run starts from: warmed up here, SmolLM2 from its package, or a folder of the user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from milepost.envs.scenarios import ScenarioConfig
from milepost.learner.first_policy.config import ModelConfig, ResponseLimits
from milepost.learner.first_policy.measure import ToolUse
from milepost.learner.first_policy.model_check import require_model
from milepost.learner.first_policy.smollm2 import convert
from milepost.learner.first_policy.warmup import warm_up


def resolve(
    config: ModelConfig,
    scenarios: ScenarioConfig | Sequence[ScenarioConfig],
    cache_dir: Path,
    limits: ResponseLimits,
    progress: Callable[[str], None] = lambda _: None,
    tool_use: ToolUse | None = None,
) -> Path:
    """The Hugging Face folder a run starts from; made under `cache_dir` where it is not the user's own.

    `tool_use` may be None where no environment has tools.

    Raises `ModelError` if the folder is missing or not complete, and what `warm_up` and `convert` raise.
    """
    disable_progress_bar()  # `progress` tells how it goes; a bar would end up in logs
    if config.source == "warmup":
        folder = warm_up(config.warmup, scenarios, cache_dir, limits, progress, tool_use)
    elif config.source == "smollm2":
        progress("model: SmolLM2-135M-Instruct (the first time it is converted, half a minute)")
        folder = convert(cache_dir)
    else:
        folder = Path(config.path).expanduser()
    require_model(folder)
    return folder
