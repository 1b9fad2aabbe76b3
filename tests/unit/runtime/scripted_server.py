"""The real server around a scripted model in its engine's process:
`python scripted_server.py PORT DRAIN_SECONDS`."""

import os
import sys
from pathlib import Path

from harness import config
from llm_runtime import logs
from llm_runtime.api.server import make_server
from llm_runtime.api.serving import WarmModel
from llm_runtime.app import HttpServer, create_app
from llm_runtime.contract import ServerConfig
from llm_runtime.engine.process import start_engine

WORKER = (sys.executable, str(Path(__file__).parent / "engine" / "scripted_worker.py"))
ANSWER = "wwwwwwwwww"
STEP_SECONDS = "0.08"


def main() -> None:
    logs.configure("json", "INFO")
    chosen = config(ServerConfig(drain_seconds=float(sys.argv[2])))
    os.environ["STEP_SECONDS"] = STEP_SECONDS

    async def load() -> WarmModel:
        engine = await start_engine(chosen, Path(ANSWER), WORKER)
        return WarmModel(engine, engine.codec, on_death=engine.on_death)

    server = make_server(chosen, load)
    HttpServer(create_app(server), "127.0.0.1", int(sys.argv[1])).run()
    if server.serving.failure:
        logs.report_fatal(server.serving.failure)
        sys.exit(1)


if __name__ == "__main__":
    main()
