"""Rewards that would end the program."""

from typing import Any


def _raising(error: type[BaseException]) -> Any:
    def reward(*_: object) -> list[float]:
        raise error("out")

    return reward


globals().update({error.__name__: _raising(error) for error in (SystemExit, KeyboardInterrupt, GeneratorExit)})
