"""Reading `/v1/completions` as a stream, as 32 clients at once do."""

import asyncio
import json
from typing import Any

import httpx


async def texts_at_once(
    url: str, headers: dict[str, str], bodies: list[dict[str, Any]]
) -> list[str]:
    """The texts of all requests, each streamed on a connection of its own at the same time."""
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=300, limits=limits, trust_env=False
    ) as session:
        return await asyncio.gather(*(_text(session, body) for body in bodies))


async def _text(session: httpx.AsyncClient, body: dict[str, Any]) -> str:
    async with session.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    return "".join(choice["text"] for event in events for choice in event["choices"])
