"""A desk that says how many pieces of a thing there are, and a database to look it up in: an environment with tools."""

import random
import sqlite3

from milepost.envs.messages import AssistantMessage, ToolCall
from milepost.envs.tool_env import ToolEnv, ToolError

THINGS = ("bolts", "hooks", "nails", "pins", "rings", "screws")
SHELVES = "ABCDEF"


class StockDesk(ToolEnv):
    """Every thing lies on a shelf of its own, drawn anew for every task."""

    def __init__(self, *, max_steps: int = 5) -> None:
        super().__init__([self.shelf_of, self.pieces_on], max_steps=max_steps)

    def start(self) -> str:
        """Fill the database and ask."""
        shelves = [SHELVES[k] for k in self.np_random.permutation(len(THINGS))]
        pieces = [int(n) for n in self.np_random.integers(1, 10, len(THINGS))]
        self.database = sqlite3.connect(":memory:")
        self.database.execute("CREATE TABLE stock (thing TEXT, shelf TEXT, pieces INTEGER)")
        self.database.executemany("INSERT INTO stock VALUES (?, ?, ?)", zip(THINGS, shelves, pieces, strict=True))
        asked = int(self.np_random.integers(len(THINGS)))
        self.thing, self.shelf, self.pieces = THINGS[asked], shelves[asked], pieces[asked]
        self.known: set[str] = set()
        return f"How many {self.thing} are there? Look it up, then answer with the number alone."

    def shelf_of(self, thing: str) -> str:
        """The shelf on which a thing lies.

        Args:
            thing: Its name, in the plural.
        """
        return self._look_up("shelf", "thing", thing)

    def pieces_on(self, shelf: str) -> str:
        """How many pieces lie on a shelf.

        Args:
            shelf: Its letter.
        """
        return self._look_up("pieces", "shelf", shelf)

    def solved(self, answer: str | None) -> bool:
        """Whether the answer is the number."""
        return answer == str(self.pieces)

    def state(self) -> str:
        """The anchor: what was asked, and which of the two steps to it were made."""
        return f"{self.thing}: {sorted(self.known & {self.shelf, str(self.pieces)})}"

    def demonstration(self, rng: random.Random, noise: float) -> AssistantMessage:
        """What an expert does next; with probability `noise` anything that could be done."""
        if rng.random() < noise:
            anything = [_call("shelf_of", thing=thing) for thing in THINGS]
            anything += [_call("pieces_on", shelf=shelf) for shelf in SHELVES]
            anything += [AssistantMessage(content=str(n)) for n in range(1, 10)]
            return rng.choice(anything)
        if self.shelf not in self.known:
            return _call("shelf_of", thing=self.thing)
        if str(self.pieces) not in self.known:
            return _call("pieces_on", shelf=self.shelf)
        return AssistantMessage(content=str(self.pieces))

    def _look_up(self, column: str, key: str, value: str) -> str:
        row = self.database.execute(f"SELECT {column} FROM stock WHERE {key} = ?", (value,)).fetchone()
        if row is None:
            raise ToolError(f"there is no {key} {value!r}")
        self.known.add(str(row[0]))
        return str(row[0])


def _call(tool: str, **arguments: str) -> AssistantMessage:
    return AssistantMessage(tool_calls=(ToolCall(id="", name=tool, arguments=dict(arguments)),))
