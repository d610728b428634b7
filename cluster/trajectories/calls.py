"""The calls of tools in a recorded turn, as its environment or its action tells of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from milepost.reward.evaluators.episode import Call

_CALL = re.compile(r"(\S+) (\{.*\})")


def calls_of(action: str | None, facts: object) -> Iterator[Call]:
    """The calls of a turn: as the environment tells of them (`ToolEnv` does), else as its canonical action names them.

    `facts` are those under "calls" in what the environment told. An action of another form is no call. The arguments of
    a call that did not fit are not recorded.
    """
    named = [_CALL.fullmatch(line) for line in (action or "").split("\n")]
    fitting = iter([(found[1], found[2]) for found in named if found])
    if not isinstance(facts, list):
        yield from (Call(name=name, arguments=arguments) for name, arguments in fitting)
        return
    for told in facts:
        fits = bool(told.get("fits", True))
        yield Call(
            name=str(told.get("name")),
            arguments=next(fitting, ("", ""))[1] if fits else "",
            known=not told.get("unknown", False),
            ok=fits and not told.get("error", False),
        )
