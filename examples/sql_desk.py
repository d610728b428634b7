"""A desk that asks what a customer spent, and a database to look it up in: an environment with tools.

`milepost check-env examples.sql_desk:SqlDesk` plays it without a model.
"""

import sqlite3

from milepost.envs.tool_env import ToolEnv, ToolError

NAMES = ("Ada", "Bo", "Cy", "Dee")


class SqlDesk(ToolEnv):
    """Has one table of orders, drawn anew for every task; the answer is a sum."""

    def __init__(self, *, orders: int = 12, max_steps: int = 6) -> None:
        super().__init__([self.tables, self.query], max_steps=max_steps)
        self.orders = orders

    def start(self) -> str:
        """Fill the database and ask."""
        rows = [(NAMES[who], int(cents)) for who, cents in self.np_random.integers(0, (4, 9999), (self.orders, 2))]
        self.database = sqlite3.connect(":memory:")
        self.database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, cents INTEGER)")
        self.database.executemany("INSERT INTO orders (customer, cents) VALUES (?, ?)", rows)
        self.database.execute("PRAGMA query_only = ON")
        self.database.set_progress_handler(lambda: 1, 1_000_000)  # ends a query that would run on
        self.sum = sum(cents for who, cents in rows if who == rows[0][0])
        return f"How many cents did {rows[0][0]} spend? Look it up, then answer with the number alone."

    def tables(self) -> list[str]:
        """The tables, as the SQL that makes them."""
        return [sql for (sql,) in self.database.execute("SELECT sql FROM sqlite_master ORDER BY name")]

    def query(self, sql: str) -> str:
        """Run one SELECT statement; at most 20 rows and 2000 characters come back.

        Args:
            sql: The statement, as SQLite takes it.
        """
        try:
            return str(self.database.execute(sql).fetchmany(20))[:2000]
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise ToolError(str(error)) from error

    def solved(self, answer: str | None) -> bool:
        """Whether the answer is the sum."""
        return answer == str(self.sum)
