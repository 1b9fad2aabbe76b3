"""The real server around a scripted engine, as a process: `python scripted_server.py PORT DRAIN_SECONDS`."""

import sys

from fakes import ScriptedEngine
from harness import config
from llm_runtime import logs
from llm_runtime.api.services import Loaded, Services
from llm_runtime.app import Server, create_app
from llm_runtime.contract import ServerConfig


def main() -> None:
    logs.configure("json", "INFO")
    engine = ScriptedEngine(script=["w "] * 10, token_seconds=0.08)
    loaded = Loaded(engine, engine.codec)
    services = Services(config(ServerConfig(drain_seconds=float(sys.argv[2]))), lambda: loaded)
    Server(create_app(services), "127.0.0.1", int(sys.argv[1])).run()


if __name__ == "__main__":
    main()
