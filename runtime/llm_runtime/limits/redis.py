"""Shared limits per minute in Redis or Valkey:
one atomic Lua script per budget, on the server's clock."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast
from uuid import uuid4

from redis import exceptions
from redis.asyncio import Redis

from llm_runtime import errors
from llm_runtime.limits.broker import LEASE_SECONDS, Presence, StoreAway
from llm_runtime.limits.exchange import CAUTION, Ask, Grant
from llm_runtime.limits.leaky_bucket import MINUTE_SECONDS

PREFIX = "llm-runtime:limits:"
REPLICAS = PREFIX + "replicas"
TIMEOUT_SECONDS = 1.0

EXCHANGE = """
local limit, give, need, demand, prefetch = unpack(cjson.decode(ARGV[1]))
local replicas, minute, caution = unpack(cjson.decode(ARGV[2]))
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local kept = redis.call('HMGET', KEYS[1], 'used', 'at')
local used, at = tonumber(kept[1] or '0'), tonumber(kept[2] or '0')
if now > at then
  used = math.max(0, used - (now - at) * limit / minute)
  at = now
end
used = math.max(0, used - give)
local room = math.floor(limit - used + 1e-6)
local amount = 0
if room >= need then
  if room > demand then
    amount = demand + math.min(prefetch, math.floor((room - demand) / (caution * replicas)))
  elseif need > 0 then
    amount = math.max(0, room)
  end
end
used = used + amount
redis.call('HSET', KEYS[1], 'used', string.format('%.17g', used), 'at', string.format('%.17g', at))
redis.call('PEXPIRE', KEYS[1], math.ceil(1000 * (used * minute / limit + minute)))
return {amount, string.format('%.17g', used)}
"""
"""`exchange.minute` in Lua; a test compares both."""

PRESENCE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
return {redis.call('ZCARD', KEYS[1]), string.format('%.17g', now)}
"""


class RedisStore:
    """The `Store` in Redis, as one replica sees it."""

    name = "Redis"
    lease_seconds = LEASE_SECONDS

    def __init__(self, url: str) -> None:
        """Raises `errors.ConfigInvalid` for an address that can't be one;
        connects when first used."""
        try:
            self._redis = Redis.from_url(
                url,
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
                decode_responses=True,
            )
        except ValueError as error:
            raise errors.ConfigInvalid(
                "REDIS_URL is no address: write redis://host:6379/0 or rediss://…"
            ) from error
        self._replica = uuid4().hex
        self._exchange = self._redis.register_script(EXCHANGE)
        self._presence = self._redis.register_script(PRESENCE)

    async def exchange(self, asks: Sequence[Ask]) -> list[Grant]:
        if not asks:
            return []
        try:
            # Outside of a context, a pipeline that fails never returns its connection to the pool.
            async with self._redis.pipeline(transaction=False) as pipeline:
                for ask in asks:
                    await cast(
                        "Awaitable[Any]",
                        self._exchange(
                            keys=[PREFIX + ask.budget], args=_words(ask), client=pipeline
                        ),
                    )
                await _again_if_cut(pipeline.load_scripts)
                pipeline.scripts.clear()  # Or `execute` asks for them once more.
                return [
                    Grant(int(amount), float(used)) for amount, used in await pipeline.execute()
                ]
        except (exceptions.RedisError, OSError) as error:
            raise StoreAway(str(error)) from error

    async def heartbeat(self) -> Presence:
        try:
            answer = await _again_if_cut(
                lambda: self._presence(keys=[REPLICAS], args=[self._replica, LEASE_SECONDS])
            )
        except (exceptions.RedisError, OSError) as error:
            raise StoreAway(str(error)) from error
        return Presence(int(answer[0]), float(answer[1]))

    async def leave(self) -> None:
        try:
            await _again_if_cut(lambda: self._redis.zrem(REPLICAS, self._replica))
            await self._redis.aclose()
        except (exceptions.RedisError, OSError) as error:
            raise StoreAway(str(error)) from error


async def _again_if_cut(ask: Callable[[], Any]) -> Any:
    """The result of `ask`, tried twice: Redis closes idle connections,
    and all of them when it restarts."""
    try:
        return await ask()
    except exceptions.ConnectionError:
        return await ask()


def _words(ask: Ask) -> list[str]:
    amounts = [ask.limit, ask.give, ask.need, ask.demand, ask.prefetch]
    return [str(amounts), str([ask.replicas, MINUTE_SECONDS, CAUTION])]
