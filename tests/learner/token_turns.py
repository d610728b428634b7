"""Turns of which only the tokens matter."""

from milepost.envs.types import Turn, VersionSpan


def turn(prompt: list[int], response: list[int], version: int = 0) -> Turn:
    """Every token of the response was sampled by `version`, with another log-prob."""
    return Turn(
        prompt_ids=prompt,
        response_ids=response,
        logprobs=[-0.5 - 0.1 * k for k in range(len(response))],
        versions=[VersionSpan(version=version, start=0, end=len(response))],
        anchor="s",
        next_anchor="s",
        action="a",
        reward=0.0,
    )
