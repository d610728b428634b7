"""An MCP server with a counter of its own, by stdio: `python counting_server.py`."""

from mcp.server import MCPServer

server = MCPServer("counting")
counted = [0]


@server.tool()
def add(number: int) -> str:
    """Add to the counter."""
    counted[0] += number
    return f"The counter is at {counted[0]}."


@server.tool()
def fail() -> str:
    """Always fails."""
    raise ValueError("broken on purpose")


if __name__ == "__main__":
    server.run()
