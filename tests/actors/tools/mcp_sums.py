"""An MCP server that adds, and an environment that asks for sums, so that many episodes may share the server."""

from __future__ import annotations

from mcp.server import MCPServer

from milepost.envs.mcp_tool_env import McpToolEnv

server = MCPServer("sums")


@server.tool()
def add(a: int, b: int) -> str:
    """Add."""
    return str(a + b)


class Sums(McpToolEnv):
    """Solved by the sum alone."""

    def start(self) -> str:
        self.terms = [int(term) for term in self.np_random.integers(1, 50, size=2)]
        return f"{self.terms[0]} + {self.terms[1]} ="

    def solved(self, answer: str | None) -> bool:
        return answer == str(sum(self.terms))
