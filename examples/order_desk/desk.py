"""A desk that cancels one order of a customer: its database, the tools over it, and the task in words.

Nothing here knows of models or of training. `env.py` makes it an environment with tools, `program.py` plays it as an
agent program; both tell the same task by the same seed, and have the same tools.
"""

from __future__ import annotations

import json
import sqlite3

import numpy

CUSTOMERS = ("Ada", "Bo", "Cy", "Dee", "Eve", "Fay", "Gil", "Hal")
ORDERS_EACH = 4
RULES = "Find the order, then cancel it and no other."


class Desk:
    """Has no case before `draw`."""

    def draw(self, rng: numpy.random.Generator) -> None:
        """A case: two customers with four orders each, numbered 1 to 8. One of each is open, and never the first."""
        customers: list[str] = rng.choice(CUSTOMERS, 2, replace=False).tolist()
        self.database = sqlite3.connect(":memory:")
        self.database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, state TEXT)")
        ids = rng.permutation(len(customers) * ORDERS_EACH) + 1
        for customer, own in zip(customers, ids.reshape(-1, ORDERS_EACH).tolist(), strict=True):
            still_open = sorted(own)[int(rng.integers(1, ORDERS_EACH))]
            rows = [(order, customer, "open" if order == still_open else "sent") for order in own]
            self.database.executemany("INSERT INTO orders VALUES (?, ?, ?)", rows)
        self.customer = customers[0]
        wanted = "SELECT id FROM orders WHERE customer = ? AND state = 'open'"
        self.wanted: list[int] = [order for (order,) in self.database.execute(wanted, (self.customer,))]

    @property
    def task(self) -> str:
        """What the customer asks for."""
        return f'Customer "{self.customer}" wants to cancel the order that is open.'

    @property
    def cancelled(self) -> list[int]:
        """The orders that were cancelled."""
        return [order for (order,) in self.database.execute("SELECT id FROM orders WHERE state = 'cancelled'")]

    @property
    def is_solved(self) -> bool:
        """Whether the order that was meant is cancelled, and no other."""
        return self.cancelled == self.wanted

    def first(self, customer: str) -> str:
        """A customer's first order."""
        return self._found("customer = ?", customer)

    def next(self, order: int) -> str:
        """The same customer's next order."""
        return self._found("id > ? AND customer = (SELECT customer FROM orders WHERE id = ?)", order, order)

    def cancel(self, order: int) -> str:
        """Cancel an order and close the case."""
        if self.cancelled:
            return "closed"
        done = self.database.execute("UPDATE orders SET state = 'cancelled' WHERE id = ?", (order,)).rowcount
        return "cancelled" if done else "no such order"

    def _found(self, where: str, *values: object) -> str:
        if self.cancelled:
            return "closed"
        found = self.database.execute(f"SELECT id, state FROM orders WHERE {where} ORDER BY id", values).fetchone()
        return json.dumps({"order": found[0], "state": found[1]}) if found else "no such order"
