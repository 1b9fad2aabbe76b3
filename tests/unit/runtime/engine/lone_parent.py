"""A parent to be killed: starts an engine that is busy, prints its process id, and waits."""

import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "tests")]

from llm_runtime.contract import ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.engine.process import start_engine  # noqa: E402
from unit.runtime.engine.fakes import request  # noqa: E402


async def main() -> None:
    client = await start_engine(
        RuntimeConfig(model=ModelConfig(name="m")), Path("hello"), sys.argv[1:]
    )
    stream = client.generate(request("forever", 240))
    await anext(stream)
    print(client._link._channel._process.pid, flush=True)  # type: ignore[union-attr]
    await asyncio.sleep(60)


asyncio.run(main())
