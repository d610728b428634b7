"""Where things are: addresses of the server, or places in one file. All that a page shows stands in its address."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, Field

from milepost.cluster.viewer.credits import STORED, STRATEGIES
from milepost.cluster.viewer.tokens import Measure


class View(BaseModel):
    """How groups and episodes are shown, as their addresses say. Nothing else may stand there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    show: Literal["messages", "text", "tokens"] = "messages"
    colour: Measure = "logprob"
    """What the shade of a token tells."""
    strategy: Annotated[str, Field(pattern=f"^({'|'.join((STORED, *STRATEGIES))})$")] = STORED

    @property
    def asked(self) -> dict[str, Any]:
        """Name -> value of all that differs from the default, as an address spells it."""
        return self.model_dump(exclude_defaults=True)


class Served:
    """Addresses of the server."""

    def run(self, key: str, **filters: Any) -> str:
        """A run or a suite, and those of its episodes that are asked for."""
        return _address(f"run/{quote(key, safe=':')}", filters)

    def iteration(self, key: str, number: int) -> str:
        """What an update was made of."""
        return _address(f"run/{quote(key, safe=':')}/iteration/{number}", {})

    def group(self, key: str, group_id: str, view: View) -> str:
        """A group of a run or a suite."""
        return _address(f"run/{quote(key, safe=':')}/group/{quote(group_id)}", view.asked)

    def episode(self, key: str, number: int, view: View, *, turn: int | None = None) -> str:
        """An episode of a run or a suite, or one of its turns."""
        place = "" if turn is None else f"#turn-{number}-{turn}"
        return _address(f"run/{quote(key, safe=':')}/episode/{number}", view.asked) + place


class InOneFile:
    """Places in the file of an export, asked for as of `Served`."""

    def group(self, key: str, group_id: str, view: View) -> str:  # noqa: ARG002
        """A group."""
        return "#" + quote(f"group-{group_id}")

    def episode(self, key: str, number: int, view: View, *, turn: int | None = None) -> str:  # noqa: ARG002
        """An episode, or one of its turns."""
        return f"#episode-{number}" if turn is None else f"#turn-{number}-{turn}"


def _address(path: str, asked: dict[str, Any]) -> str:
    query = urlencode(asked, doseq=True)
    return f"/{path}?{query}" if query else f"/{path}"
