"""Tools that an MCP server provides, as an environment's: by stdio, a server of its own for every episode, or by HTTP.

Needs the extra `mcp`. A command starts with the episode and ends with it, so its state is the episode's own; a server
behind a URL is shared by all episodes, and what one changes there the others see. Not promised: that a server answers:
a call that hangs is the environment's failure, after `actors.env_timeout_s`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import mcp
from anyio.from_thread import BlockingPortal, start_blocking_portal

from milepost.envs.messages import ToolSchema
from milepost.envs.tool_env import ToolEnv, ToolError


class McpTool:
    """One tool of a server, called through `client` on the event loop behind `portal`."""

    def __init__(self, portal: BlockingPortal, client: mcp.Client, told: mcp.Tool) -> None:
        self.name: str = told.name
        self.schema: ToolSchema = {
            "type": "function",
            "function": {"name": told.name, "description": told.description or "", "parameters": told.input_schema},
        }
        self._validator = jsonschema.Draft202012Validator(told.input_schema)
        self._portal, self._client = portal, client

    def checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`arguments` as they are. Raises `ToolError` where they do not fit the server's schema."""
        wrong = [f"{error.json_path}: {error.message}" for error in self._validator.iter_errors(dict(arguments))]
        if wrong:
            raise ToolError("; ".join(wrong)[:1000])
        return dict(arguments)

    def run(self, checked: Mapping[str, Any]) -> str:
        """The texts that the server answers with; raises `ToolError` where it says that the tool failed."""
        result = self._portal.call(self._client.call_tool, self.name, dict(checked))
        text = "\n".join(part.text if part.type == "text" else f"[{part.type}]" for part in result.content)
        if result.is_error:
            raise ToolError(text)
        return text


class McpToolEnv(ToolEnv):
    """Base class of environments whose tools come from `server`: a command line, or a URL (Streamable HTTP).

    `start` may call tools, with `call`, to set a task up.
    """

    def __init__(self, server: str, *, max_steps: int = 10) -> None:
        super().__init__([], max_steps=max_steps)
        self._server = server
        self._connection = ExitStack()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Connect anew, and begin."""
        self._connection.close()
        command, *arguments = shlex.split(self._server)
        by_http = self._server.startswith(("http://", "https://"))
        where = self._server if by_http else mcp.StdioServerParameters(command=command, args=arguments)
        portal = self._connection.enter_context(start_blocking_portal())
        try:
            client = self._connection.enter_context(portal.wrap_async_context_manager(mcp.Client(where)))
        except Exception as error:
            raise ConnectionError(f"MCP server {self._server}: {_first(error)}") from error
        self.offer([McpTool(portal, client, told) for told in portal.call(_all_tools, client)])
        return super().reset(seed=seed, options=options)

    def call(self, name: str, **arguments: Any) -> str:
        """What a tool of the server answers, outside of the policy's turns. Raises `ToolError`."""
        return str(self.called(name, arguments))

    def close(self) -> None:
        """End the connection, and a server that was started for it."""
        self._connection.close()


def _first(error: BaseException) -> BaseException:
    """What an exception group says nothing of: its first error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _all_tools(client: mcp.Client) -> list[mcp.Tool]:
    page = await client.list_tools()
    found = list(page.tools)
    while page.next_cursor:
        page = await client.list_tools(cursor=page.next_cursor)
        found += page.tools
    return found
