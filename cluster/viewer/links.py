"""Where things are: addresses of the server, or places in one file. All that a page shows stands in its address."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol
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

    def asked(self, **changes: Any) -> dict[str, Any]:
        """What an address says of it, with `changes`."""
        return self.model_copy(update=changes).model_dump(exclude_defaults=True)


class Links(Protocol):
    """How a page names the others. An empty text means that there is no such page."""

    def group(self, key: str, group_id: str, view: View) -> str:
        """A group of a source."""
        ...

    def episode(self, key: str, number: int, view: View, *, turn: int | None = None) -> str:
        """An episode of a source, or one of its turns."""
        ...


class Served:
    """Addresses of the server."""

    def index(self, run_ids: list[str]) -> str:
        """Some runs side by side."""
        return _address("", {"run": run_ids})

    def run(self, key: str, **filters: Any) -> str:
        """A run or a suite, and those of its episodes that are asked for."""
        return _address(f"run/{quote(key)}", filters)

    def iteration(self, key: str, number: int) -> str:
        """What an update was made of."""
        return _address(f"run/{quote(key)}/iteration/{number}", {})

    def group(self, key: str, group_id: str, view: View) -> str:
        """As in `Links`."""
        return _address(f"run/{quote(key)}/group/{quote(group_id)}", view.asked())

    def episode(self, key: str, number: int, view: View, *, turn: int | None = None) -> str:
        """As in `Links`."""
        place = "" if turn is None else f"#turn-{number}-{turn}"
        return _address(f"run/{quote(key)}/episode/{number}", view.asked()) + place


class InOneFile:
    """Places in the file of an export."""

    def __init__(self, episodes: set[int]) -> None:
        self._episodes = episodes

    def group(self, key: str, group_id: str, view: View) -> str:  # noqa: ARG002  as in `Links`
        """As in `Links`."""
        return "#" + quote(f"group-{group_id}")

    def episode(self, key: str, number: int, view: View, *, turn: int | None = None) -> str:  # noqa: ARG002
        """As in `Links`."""
        if number not in self._episodes:
            return ""
        return f"#episode-{number}" if turn is None else f"#turn-{number}-{turn}"


def _address(path: str, asked: dict[str, Any]) -> str:
    query = urlencode(asked, doseq=True)
    return f"/{path}?{query}" if query else f"/{path}"
