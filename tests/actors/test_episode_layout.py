"""What a chat template refuses in the middle of an episode ends that episode, and nothing else."""

import asyncio
from pathlib import Path

from transformers import AutoTokenizer

from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure
from tests.actors.episode_rig import failure, play, resources, task
from tests.conftest import CHATML


def test_a_template_that_fails_on_an_observation_ends_its_episode_as_a_failure(tiny_policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    refuses = "{% for m in messages %}{% if m['content'] == '2' %}{{ raise_exception('no 2') }}{% endif %}{% endfor %}"
    tokenizer.chat_template = refuses + CHATML

    async def one() -> Failure:
        async with resources(Dialogue(tokenizer)) as here:
            return failure(await play(here, task()))

    failed = asyncio.run(one())
    assert (failed.boundary, failed.error, failed.turn) == ("env", "TemplateError", 2)
    assert "no 2" in failed.message
