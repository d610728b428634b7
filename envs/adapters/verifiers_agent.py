"""Environments of the package `verifiers` (SingleTurnEnv, MultiTurnEnv, ToolEnv and their kin), as an agent program.

Such an environment asks the model by itself, so it plays through the endpoint of docs/agents.md, and its own rubric
scores it. Needs the extra `verifiers`. It is loaded once per process, and all its episodes run on one event loop, as in
verifiers' own runs: a tool that blocks holds up the others. Not promised: a failure where a reward function raises, for
verifiers itself counts that as 0.
"""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

from milepost.envs.dotted_path import resolve

_HELD_OUT = 5
"""Of an environment with one dataset, every so many rows are kept from training."""
_OPTIONS = {"environment", "args", "cohort"}
_stages: dict[str, _Stage] = {}
_loading = threading.Lock()


async def run(task: dict[str, Any], client: Any) -> dict[str, Any]:
    """One rollout of the dataset's row that the task's seed and split name: the rubric's reward, and success by
    `pass_threshold`, both as verifiers has them.

    Options: `environment`, an id for `vf.load_environment` or `package.module:function`; `args`, its arguments.
    """
    stage = _stage(task["options"])
    row = stage.row(task["split"], task["seed"])
    rollout = asyncio.run_coroutine_threadsafe(_rollout(stage.environment, row, client), stage.loop)
    try:
        return await asyncio.wrap_future(rollout)
    except asyncio.CancelledError:
        # Answered once the loop turns again: where a tool blocks it, this episode is seen to hang.
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), stage.loop))
        raise


class _Stage:
    """An environment, the loop of its rollouts, and its rows."""

    def __init__(self, name: str, args: dict[str, Any]) -> None:
        vf = _verifiers()
        self.name = name
        load: Any = resolve(name) if ":" in name else partial(vf.load_environment, name)
        self.environment = load(**args)
        if not isinstance(self.environment, vf.Environment):
            raise TypeError(f"environment {name!r} made {self.environment!r}, which is no verifiers.Environment")
        if self.environment.requires_group_rollouts:
            raise ValueError(f"environment {name!r} scores whole groups of rollouts; here each episode is scored alone")
        self._rows: dict[bool, Any] = {}
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name=f"verifiers {name}", daemon=True).start()

    def row(self, split: str, seed: int) -> dict[str, Any]:
        """The row for a seed; a split has its rows in turn. Raises ValueError where it has none."""
        training = split == "train"
        with _loading:
            if training not in self._rows:
                self._rows[training] = self._rows_of(training)
        rows = self._rows[training]
        if not len(rows):
            raise ValueError(f"environment {self.name!r} has no rows for the split {split!r}: give it more rows")
        row: dict[str, Any] = rows[seed % len(rows)]
        return row

    def _rows_of(self, training: bool) -> Any:
        train, evaluation = self.environment.build_dataset(), self.environment.build_eval_dataset()
        if train is not None and evaluation is not None:
            return train if training else evaluation
        only = evaluation if train is None else train
        return only.select([k for k in range(len(only)) if (k % _HELD_OUT == 0) != training])


def _stage(options: dict[str, Any]) -> _Stage:
    """The stage for these options, made where it is asked for first."""
    name, args = options.get("environment"), options.get("args", {})
    if not isinstance(name, str) or not isinstance(args, dict) or not options.keys() <= _OPTIONS:
        raise ValueError(
            "env.options for a verifiers environment are environment = 'its id' (or 'package.module:function') and, if "
            f"it takes any, args = {{...}}; found {options}"
        )
    key = json.dumps([name, args], sort_keys=True)
    with _loading:
        if key not in _stages:
            _stages[key] = _Stage(name, args)
        return _stages[key]


def _verifiers() -> Any:
    try:
        import verifiers as vf
        from verifiers.legacy.envs import environment
    except ImportError as error:
        raise ImportError(
            f"{__name__} needs the extra 'verifiers' (verifiers 0.3): pip install 'milepost[verifiers]'; {error}"
        ) from error
    # It takes over SIGINT and SIGTERM in its constructor, which only a main thread may, and which are the worker's.
    environment.signal = SimpleNamespace(
        signal=lambda *_: None,
        SIGINT=signal.SIGINT,
        SIGTERM=signal.SIGTERM,
        default_int_handler=signal.default_int_handler,
    )
    return vf


async def _rollout(environment: Any, row: dict[str, Any], client: Any) -> dict[str, Any]:
    """On the stage's loop, with connections of its own, which belong to that loop."""
    import verifiers as vf
    from openai import DefaultAsyncHttpxClient

    async with client.copy(http_client=DefaultAsyncHttpxClient(trust_env=False)) as own:
        output = await environment.run_rollout(
            row, vf.OpenAIChatCompletionsClient(own), "policy", environment.sampling_args
        )
    error = output.get("error")
    # An answer without a word is the policy's doing: the rubric scores what there is.
    if error is not None and error["error"] != "EmptyModelResponseError":
        raise RuntimeError(f"the rollout ended with {error['error_chain_repr']}")
    return {"reward": output["reward"], "success": output["reward"] >= environment.pass_threshold}
