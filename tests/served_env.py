"""The coin game behind a service of its own: while a file exists, the service is away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.coin_env import CoinEnv


class ServedCoinEnv(CoinEnv):
    """As CoinEnv; a step fails at once while `outage` exists."""

    def __init__(self, *, outage: str, turns: int = 3, delay_s: float = 0.0) -> None:
        super().__init__(turns=turns, delay_s=delay_s)
        self._outage = Path(outage)

    def step(self, response: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._outage.exists():
            raise ConnectionError("the service is away")
        return super().step(response)
