"""The judge's server: one call at a time, each with a deadline, a bound on its size, and a name for what went wrong.

No redirect is followed: a key goes to the server that the judge's file names and nowhere else.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

import aiohttp

from milepost.reward.judges.config import JudgeConfig, JudgeRefused

_MAX_BYTES: Final = 4 * 1024**2
_REFUSING: Final = (401, 403, 404)
_BAD_REQUEST: Final = (400, 413, 422)


class NoAnswer(Exception):
    """The server gave no answer; another call may get one."""


class Unanswerable(Exception):
    """The server takes no such request; another call will not be taken either."""


async def models(config: JudgeConfig) -> list[dict[str, Any]]:
    """What the server lists. Raises NoAnswer, Unanswerable, JudgeRefused."""
    told = await _call(config, "GET", "/models", None)
    listed = told.get("data")
    if not isinstance(listed, list):
        raise JudgeRefused(f"judge {config.name}: {config.base_url}/models lists no models; correct base_url")
    return [each for each in listed if isinstance(each, dict)]


async def complete(config: JudgeConfig, body: dict[str, Any]) -> str:
    """The text of the answer to a chat completion.

    Raises NoAnswer, Unanswerable, and JudgeRefused where another model answered than the one that was asked.
    """
    told = await _call(config, "POST", "/chat/completions", body)
    if told.get("model") != config.model:
        raise JudgeRefused(
            f"judge {config.name}: {config.model!r} was asked and {told.get('model')!r} answered; give the exact name "
            "in model, or mend the server"
        )
    try:
        choice = told["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise NoAnswer("its reply holds no message") from error
    if choice.get("finish_reason") == "length":
        raise NoAnswer(f"its answer was cut at max_tokens = {config.max_tokens}")
    if not isinstance(text, str):
        raise NoAnswer("its message holds no text")
    return text


async def _call(config: JudgeConfig, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    url = f"{config.base_url}{path}"
    limit = aiohttp.ClientTimeout(total=config.deadline_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=limit, trust_env=True) as session,
            session.request(method, url, json=body, headers=_headers(config), allow_redirects=False) as reply,
        ):
            raw = await _bounded(reply.content)
            status = reply.status
    except TimeoutError as error:
        raise NoAnswer(f"{url} did not answer within deadline_s = {config.deadline_s:g}") from error
    except aiohttp.ClientError as error:
        raise NoAnswer(f"{url}: {type(error).__name__}: {error}") from error
    return _read(config, url, status, raw)


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    """Raises NoAnswer for more than 4 MiB."""
    raw = bytearray()
    async for chunk in content.iter_any():
        raw += chunk
        if len(raw) > _MAX_BYTES:
            raise NoAnswer("its reply is larger than 4 MiB")
    return bytes(raw)


def _read(config: JudgeConfig, url: str, status: int, raw: bytes) -> dict[str, Any]:
    said = " ".join(raw[:200].decode(errors="replace").split())
    if status in _REFUSING:
        raise JudgeRefused(f"judge {config.name}: {url} answers {status}: {said}; correct model, base_url or the key")
    if status in _BAD_REQUEST:
        raise Unanswerable(f"{url} answers {status}: {said}")
    if status != 200:
        raise NoAnswer(f"{url} answers {status}: {said}")
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise NoAnswer(f"{url} answers what is not JSON: {said}") from error
    if not isinstance(told, dict):
        raise NoAnswer(f"{url} answers what is no JSON object: {said}")
    return told


def _headers(config: JudgeConfig) -> dict[str, str]:
    if not config.api_key_env:
        return {}
    key = os.environ.get(config.api_key_env)
    if not key:
        raise JudgeRefused(f"judge {config.name}: api_key_env: the variable {config.api_key_env} is not set; set it")
    return {"Authorization": f"Bearer {key}"}
