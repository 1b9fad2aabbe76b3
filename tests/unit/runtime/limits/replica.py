"""A replica that uses up one key's limits: `python replica.py`, told what to do by a line of JSON.

Every admission is a line of its own on standard output, written before the next one is asked for,
so that a kill -9 loses none but the latest: tokens admitted, tokens used.
"""

import asyncio
import json
import os
import random
import sys
import time

from llm_runtime import errors
from llm_runtime.contract import Tier
from llm_runtime.db.database import Database
from llm_runtime.limits.limiter import Limiter
from llm_runtime.limits.shared import SqlStore
from llm_runtime.request import Caller


async def main() -> None:
    task = json.loads(sys.argv[1])
    database = Database(task["url"])
    chance = random.Random(task["seed"])
    store = SqlStore(database, lease_seconds=task["lease_seconds"])
    who = Caller(
        "key",
        "key",
        Tier.model_validate({"name": "gold", "max_concurrent": None, **task["limits"]}),
    )
    end = time.monotonic() + task["seconds"]
    last = time.monotonic()
    async with Limiter(minutes=store, months=store) as limits:

        async def use() -> None:
            nonlocal last
            while time.monotonic() < min(end, last + task["patience"]):
                reserved = chance.randint(1, task["most"])
                try:
                    admission = await limits.admit(who, reserved)
                except (errors.RateLimited, errors.QuotaExceeded):
                    await asyncio.sleep(0.02)
                    continue
                last = time.monotonic()
                await asyncio.sleep(chance.uniform(0, task["hold_seconds"]))
                used = chance.randint((reserved + 1) // 2, reserved)
                os.write(1, f"{reserved} {used} {time.time()}\n".encode())
                admission.settle(used)

        os.write(1, b"ready\n")
        await asyncio.gather(*(use() for _ in range(task["clients"])))
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
