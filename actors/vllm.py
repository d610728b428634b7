"""The policy's inference engine: vLLM's AsyncLLM, token ids in and out, with weights that change while it runs.

Promises: log-probs are those of the sampled distribution; every response carries the policy versions that sampled it.
`commit` names what `load` verified and loaded, and trusts its caller to have called it. Does not promise determinism
across batch compositions.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs.engine import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from milepost.actors import transfer
from milepost.actors.engine import Completion, EngineConfig, EngineError, SamplingConfig
from milepost.envs.types import VersionSpan

_CPU_BLOCK = 32
_DIGEST_ALL_EVERY = 8


def _placement(config: EngineConfig) -> dict[str, Any]:
    """What differs between CPU and GPU.

    On CPU vLLM runs the model in a process apart from its scheduler, to bind threads for it. Our threads are bound by
    nobody, so both share one: up in half the time, and half the CPU time per token (docs/design.md, section 10). Its
    cache there keeps prefixes in blocks of 128 tokens, and turns are shorter: what of a prompt lies in a block that is
    not full is computed again.
    """
    if not current_platform.is_cpu():
        # In a Ray placement group vLLM would start its workers as actors, in bundles that it does not know
        several = {"distributed_executor_backend": "mp"} if config.tensor_parallel_size > 1 else {}
        return {"gpu_memory_utilization": config.gpu_memory_utilization, **several}
    alone: dict[str, Any] = (
        {"distributed_executor_backend": UniProcExecutor} if config.tensor_parallel_size == 1 else {}
    )
    return {"block_size": _CPU_BLOCK} | alone


class VLLMEngine:
    """One vLLM engine serving one policy."""

    def __init__(
        self,
        model: Path,
        config: EngineConfig,
        sampling: SamplingConfig,
        *,
        version: int,
        stop_token_ids: list[int],
        seed: int,
    ) -> None:
        transfer.register()
        self._config = config
        self._params = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            stop_token_ids=stop_token_ids,
            ignore_eos=True,  # the stop tokens are named above; one list decides
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # its copies differ in numbers alone, and what vLLM adds to them is the same for all
        )
        self._stop = frozenset(stop_token_ids)
        self._version = version
        self._is_undigested = True
        self._is_asleep = False
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(model),
                trust_remote_code=False,
                dtype=config.dtype,
                seed=seed,
                max_model_len=config.max_model_len,
                max_num_seqs=config.max_num_seqs,
                tensor_parallel_size=config.tensor_parallel_size,
                enforce_eager=current_platform.is_cpu(),
                enable_prefix_caching=True,
                logprobs_mode="processed_logprobs",
                weight_transfer_config=WeightTransferConfig(
                    backend=transfer.NCCL if config.transfer == "nccl" else transfer.FILE
                ),
                worker_extension_cls=f"{transfer.__name__}.{transfer.WeightDigests.__name__}",
                disable_log_stats=False,  # its own metrics, for whoever serves them
                **(_placement(config) | config.vllm),
            )
        )

    async def start(self, base: Path | None = None) -> int:
        """Name the weights it was started from and prove it serves. Returns the policy version.

        `base`: folder of the model that adapters join, where they come in place of whole weights.
        """
        await self._llm.update_weight_version(str(self._version))
        if self._config.transfer != "nccl":
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info={"base": str(base or "")}))
        await self.generate([min(self._stop)])
        return self._version

    async def generate(self, prompt_ids: list[int], at_most: int | None = None) -> Completion:
        """Sample one response to `prompt_ids`, of `sampling.max_tokens` or `at_most` tokens, whichever is less.

        Raises:
            EngineError: the context is full, the engine is dead or gave the request up, or its deadline passed.
        """
        room = self._config.max_model_len - len(prompt_ids)
        if room < 1:
            raise EngineError(f"the context of {len(prompt_ids)} tokens fills engine.max_model_len")
        params = self._params.clone()
        params.max_tokens = min(params.max_tokens or 1, room, at_most or room)
        request_id = uuid.uuid4().hex
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                final = None
                async for output in self._llm.generate(tokens_input(prompt_ids), params, request_id):
                    final = output
        except TimeoutError as error:  # vLLM has aborted the request: it does so for a cancelled caller
            raise EngineError(
                f"no completion within engine.request_timeout_s = {self._config.request_timeout_s}"
            ) from error
        except Exception as error:  # vLLM raises many kinds when its core process dies
            raise EngineError(f"{type(error).__name__}: {error}") from error
        if final is None or final.outputs[0].finish_reason not in ("stop", "length"):
            raise EngineError("the engine gave the request up before it had an answer")
        return self._completion(final.outputs[0])

    def _completion(self, output: object) -> Completion:
        ids = list(output.token_ids)  # type: ignore[attr-defined]
        ranked = output.logprobs  # type: ignore[attr-defined]
        spans = output.weight_versions  # type: ignore[attr-defined]
        if not ids or ranked is None or spans is None:
            raise EngineError("a completion came back without tokens, log-probs or weight versions")
        return Completion(
            response_ids=ids,
            logprobs=[entry[token].logprob for token, entry in zip(ids, ranked, strict=True)],
            versions=[VersionSpan(version=int(s.version), start=s.start, end=s.end) for s in spans],
            stopped=ids[-1] in self._stop,
        )

    async def check(self) -> None:
        """Return once vLLM's core has answered, which it does between two steps; a stopped one never does."""
        await self._llm.is_sleeping()

    async def sleep(self) -> None:
        """Freeze running requests and leave the GPU to others: weights to the host, the cache away, until `commit`.

        vLLM's sleep mode of level 1: an engine whose next weights never come still holds its own. Where vLLM was not
        started with `enable_sleep_mode`, as it is not on CPUs, this is a pause.
        """
        await self._llm.sleep(level=1, mode="keep")
        self._is_asleep = True

    async def pause(self) -> None:
        """Freeze running requests where they are, as they are in sleep; they go on after `commit`."""
        if self._is_asleep:
            return
        # The cache holds keys and values of the old weights: cleared, so that running requests are prefilled anew and
        # every later token is sampled by one set of weights.
        await self._llm.pause_generation(mode="keep", clear_cache=True)

    async def verify(self, path: str, sha256: str) -> None:
        """Hash the weights in `path` on a thread, while requests go on. Raises ValueError if they are other ones."""

        def hashed() -> str:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        if (digest := await asyncio.to_thread(hashed)) != sha256:
            raise ValueError(f"weights in {path} hash to {digest[:12]}, expected {sha256[:12]}")

    async def load(self, path: str) -> None:
        """Load the weights in `path`. Verify first, pause, then load.

        If it raises, the engine stays paused: it is out of rotation and must be replaced.
        """
        if self._is_asleep:
            await self._llm.wake_up(["weights"])
        await self._llm.start_weight_update()
        await self._llm.update_weights(WeightTransferUpdateRequest(update_info={"path": path}))
        await self._llm.finish_weight_update()

    async def digests(self, version: int) -> dict[str, str]:
        """Digests of the parameters it holds as `version`, by worker and name (see `transfer.WeightDigests`).

        Of all of them the first time and for every eighth version, else of a sample of the layers, the same on every
        engine.
        """
        is_whole = self._is_undigested or version % _DIGEST_ALL_EVERY == 0
        self._is_undigested = False
        shares = 1 if is_whole else _DIGEST_ALL_EVERY
        method = transfer.WeightDigests.weight_digests.__name__
        found = await self._llm.collective_rpc(method, args=(version, shares))
        return {f"{worker}:{name}": digest for worker, part in enumerate(found) for name, digest in part.items()}

    async def commit(self, version: int, *, rollback: bool = False) -> None:
        """Call the loaded weights `version` and let frozen requests go on.

        Raises ValueError if it is not newer, unless the learner itself has gone back (`rollback`).
        """
        if version <= self._version and not rollback:
            raise ValueError(f"version {version} is not newer than {self._version}")
        await self._llm.update_weight_version(str(version))
        self._version = version
        if self._is_asleep:  # with the cache all memory is back, and vLLM goes on by itself: hence after the version
            await self._llm.wake_up(["kv_cache"])
            self._is_asleep = False
        else:
            await self._llm.resume_generation()

    @property
    def version(self) -> int:
        """The policy version whose weights it serves."""
        return self._version

    @property
    def llm(self) -> AsyncLLM:
        """vLLM's own object, for the control calls of its NCCL trainer side."""
        return self._llm

    @property
    def dead(self) -> bool:
        """Whether vLLM's own processes are gone."""
        return bool(self._llm.errored)

    def shutdown(self) -> None:
        """End vLLM's processes; without it shared-memory segments stay behind."""
        self._llm.shutdown()
