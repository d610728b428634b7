"""A judge at work: verified before, asked with deadlines, and a judgement of every episode, a failed one included.

A judgement that fails is missing, never a low score. What the environment reports (success, broken rules) is told to
the judge and stays the environment's: no answer changes it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from milepost.reward.judges import server
from milepost.reward.judges.config import JudgeConfig
from milepost.reward.judges.prompt import prompt_sha256, request
from milepost.reward.judges.quoting import Transcript
from milepost.reward.judges.verdict import Judgement, Malformed, contradiction, read_answer

_PAUSE_S = 0.5
"""Before a server that gave no answer is asked again."""


class Judge:
    """Asks the server of a config."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self._none = Judgement(weights_digest=config.weights_digest, prompt_sha256=prompt_sha256(config))

    async def judge(self, transcript: Transcript) -> Judgement:
        """Its judgement; asked again where an answer does not come or is not what was asked for.

        Raises JudgeRefused where the server is not, or no longer, that of the pinned judge.
        """
        failure = ""
        for attempt in range(self.config.retries + 1):
            question = request(self.config, transcript, secrets.token_hex(16), attempt)
            try:
                answer = read_answer(await server.complete(self.config, question.body), question.answer)
            except Malformed as error:
                failure = str(error)
            except server.NoAnswer as error:
                failure = str(error)
                await asyncio.sleep(_PAUSE_S if attempt < self.config.retries else 0)
            except server.Unanswerable as error:
                return replace(self._none, failure=str(error))
            else:
                if wrong := contradiction(answer, transcript, question.shown, self.config.criteria):
                    return replace(self._none, failure=wrong, contradicted=True)
                told = {name: answer.of(name) for name in self.config.criteria}
                return replace(
                    self._none,
                    scores={name: self.config.criteria[name].share(score) for name, (_, score) in told.items()},
                    evidence={name: list(turns) for name, (turns, _) in told.items()},
                )
        return replace(self._none, failure=f"asked {self.config.retries + 1} times: {failure}")

    async def judge_all(self, transcripts: Sequence[Transcript], until: float) -> list[Judgement]:
        """Judgements in the same order, at most `parallel` at a time, until the loop's clock says `until`.

        What is not judged by then has failed. Raises JudgeRefused.
        """
        gate = asyncio.Semaphore(self.config.parallel)

        async def one(transcript: Transcript) -> Judgement:
            async with gate:
                return await self.judge(transcript)

        tasks = [asyncio.create_task(one(transcript)) for transcript in transcripts]
        try:
            if tasks:
                left = until - asyncio.get_running_loop().time()
                await asyncio.wait(tasks, timeout=max(0.0, left), return_when=asyncio.FIRST_EXCEPTION)
            late = replace(self._none, failure=f"not judged when total_s = {self.config.total_s:g} were over")
            if refused := next((e for t in tasks if t.done() and (e := t.exception()) is not None), None):
                raise refused
            return [task.result() if task.done() else late for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
