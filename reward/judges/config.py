"""A judge as a TOML file says it: which model, where it is served, what it is asked, and how long it may take.

The file pins the judge: the digest of its weights and that of its prompt stand in it, and another one is refused. It
holds no key: `api_key_env` names the environment variable that does. Sampling is greedy, at temperature 0.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

_MAX_BYTES = 1_000_000
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
CriterionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class JudgeRefused(ValueError):
    """A judge cannot be used as it is: its file, its digests, its family, or what its server says."""


class Criterion(BaseModel):
    """One thing that the judge scores with a whole number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    ask: str = Field(min_length=1, description="What is asked, and what the ends of the scale mean")
    low: int = Field(1, description="Lowest score")
    high: int = Field(5, description="Highest score")

    @model_validator(mode="after")
    def _is_a_scale(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        return self

    def share(self, score: int) -> float:
        """A score of the scale in [0, 1].

        >>> Criterion(ask="How sound is it?").share(4)
        0.75
        """
        return (score - self.low) / (self.high - self.low)


class JudgeConfig(BaseModel):
    """The whole file. Paths are absolute once it is loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name = Field(description="What results call the judge")
    model: str = Field(min_length=1, description="What its server calls the model")
    base_url: str = Field(description="Base of the OpenAI-compatible API, e.g. http://127.0.0.1:8000/v1")
    api_key_env: str = Field("", description="Environment variable that holds the key; empty sends none")
    weights: str = Field("", description="Folder that the server serves; its digest and its family are read there")
    weights_digest: str = Field(
        "", pattern="^([0-9a-f]{40}|[0-9a-f]{64})?$", description="Pinned: SHA-256 of the folder, or a declared commit"
    )
    family: str = Field("", description="Model type, e.g. qwen3, where there is no folder to read it in")
    allow_same_family: bool = Field(False, description="Whether it may be of the policy's own family")
    prompt: str = Field("", description="What the judge is told before the criteria")
    prompt_file: str = Field("", description="The same in a file of its own")
    prompt_sha256: str = Field("", pattern="^([0-9a-f]{64})?$", description="Pinned: of all that is said and asked")
    criteria: dict[CriterionName, Criterion] = Field(min_length=1, max_length=8, description="What it scores")
    deadline_s: float = Field(60, gt=0, description="Seconds that a call may take")
    total_s: float = Field(1800, gt=0, description="Seconds that all calls of an evaluation may take together")
    retries: int = Field(2, ge=0, le=10, description="How often it is asked again")
    max_tokens: int = Field(1024, ge=16, description="Tokens of an answer, thoughts included")
    max_chars: int = Field(
        24_000, ge=1000, description="Characters of an episode that are shown; its middle is left out"
    )
    parallel: int = Field(4, ge=1, le=256, description="Calls at a time")
    seed: int = Field(0, ge=0, description="Seed of the server's sampling")
    calibration: str = Field("", description="JSONL of episodes with the scores that people gave them")
    max_drift: float = Field(0.05, ge=0, le=1, description="Mean change that calibration may show, as a share of scale")
    promotion_grade: bool = Field(False, description="Whether scores are refused that may not decide a promotion")

    @field_validator("base_url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https URL")
        if parts.username or parts.password or parts.query:
            raise ValueError("a key does not stand in a file: name the variable that holds it in api_key_env")
        return url.rstrip("/")

    @field_validator("criteria")
    @classmethod
    def _can_be_keys(cls, criteria: dict[str, Criterion]) -> dict[str, Criterion]:
        if taken := [name for name in criteria if hasattr(BaseModel, name)]:
            raise ValueError(f"{taken[0]} is taken; give the criterion another name")
        return criteria

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if bool(self.prompt) == bool(self.prompt_file):
            raise ValueError("give prompt or prompt_file, one of them")
        if self.promotion_grade and not self.calibration:
            raise ValueError("promotion_grade = true needs a calibration file")
        if bool(self.weights) == bool(self.family):
            raise ValueError("give weights, a folder, or family, where there is none to read: one of them")
        return self

    @property
    def longest_s(self) -> float:
        """Seconds that one judgement may take, asked again as often as it may be."""
        return self.deadline_s * (self.retries + 1)


def load_config(path: Path) -> JudgeConfig:
    """The judge of a TOML file. Raises JudgeRefused with a line for each thing that is wrong: file, key, reason."""
    try:
        table = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise JudgeRefused(f"{path}: not valid TOML: {error}") from error
    for key in ("weights", "prompt_file", "calibration"):
        if isinstance(value := table.get(key), str) and value:
            table[key] = str(path.absolute().parent / Path(value).expanduser())
    try:
        config = JudgeConfig.model_validate(table)
        if config.prompt_file:
            said = read_text(Path(config.prompt_file))
            config = config.model_copy(update={"prompt": said})
    except ValidationError as error:
        raise JudgeRefused("\n".join(complaints(error, str(path)))) from error
    if not config.prompt.strip():
        raise JudgeRefused(f"{path}: prompt: it says nothing")
    return config


def read_text(path: Path) -> str:
    """The text of a small file. Raises JudgeRefused."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise JudgeRefused(f"{path}: larger than 1 MB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise JudgeRefused(f"{path}: {error.strerror}; give the path of a file that this user may read") from error
    except UnicodeDecodeError as error:
        raise JudgeRefused(f"{path}: not valid UTF-8: {error}") from error


def complaints(error: ValidationError, where: str) -> Iterator[str]:
    """What is wrong with a table, one line each."""
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"])
        reason = "unknown key" if detail["type"] == "extra_forbidden" else detail["msg"].removeprefix("Value error, ")
        yield f"{where}: {key}: {reason}" if key else f"{where}: {reason}"
