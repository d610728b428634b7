"""A policy for the example desk, as `agent_rig.SayingEngine` is told what to say."""

import json

from examples.agent.desk import Desk


class Clerk:
    """Looks every order up, and then answers `answer`; or, without one, looks the customers up for ever."""

    def __init__(self, desk: Desk, answer: str | None) -> None:
        orders = json.loads(desk.call("orders_of", json.dumps({"customer": desk.customer})))
        calls = [("orders_of", {"customer": desk.customer}), *(("price_of", {"order": order}) for order in orders)]
        said = [f"CALL {name} {json.dumps(arguments)}" for name, arguments in calls]
        self.left = [*said, answer] if answer else ["CALL customers {}"] * 20

    def __call__(self, prompt: str) -> str:
        return "they are three" if "one line" in prompt else self.left.pop(0)
