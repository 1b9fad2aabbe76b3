"""A process that writes usage rows until SIGTERM:
`python writing_process.py URL FLUSH_SECONDS ROWS_PER_SECOND`.

Prints the number of the last row taken, time after time; at the end how many it took.
"""

import asyncio
import signal
import sys

from llm_runtime.contract import DatabaseConfig
from llm_runtime.db import migrate
from llm_runtime.db.database import Database
from llm_runtime.metrics import Metrics
from llm_runtime.usage.writer import DatabaseUsage
from usage_rows import row

TICK_SECONDS = 0.01


async def main() -> None:
    url = sys.argv[1]
    flush_seconds = float(sys.argv[2])
    rate = int(sys.argv[3])
    database = Database(url)
    stopping = asyncio.Event()
    taken = 0
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await migrate.upgrade(database)
    async with DatabaseUsage(
        database, DatabaseConfig(flush_seconds=flush_seconds), Metrics()
    ) as usage:
        while not stopping.is_set():
            for _ in range(round(rate * TICK_SECONDS)):
                usage.write(row(request_id=str(taken), key_id=f"k{taken % 40}"))
                taken += 1
            print(taken, flush=True)
            await asyncio.sleep(TICK_SECONDS)
    print(taken, flush=True)
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
