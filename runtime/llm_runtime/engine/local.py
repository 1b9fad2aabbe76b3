"""The engine on a thread of this process: for tests and for measuring it without HTTP."""

import threading
from pathlib import Path

from llm_runtime.contract import RuntimeConfig
from llm_runtime.engine.client import STALL_SECONDS, EngineClient, EngineLink
from llm_runtime.engine.loop import StepLoop
from llm_runtime.engine.messages import Close, Command
from llm_runtime.engine.model import Build, Model, TellCodec
from llm_runtime.engine.trace import StepTrace, TracedLoop
from llm_runtime.errors import ModelUnsupported

CLOSE_SECONDS = 10.0


def _load_nothing(config: RuntimeConfig, folder: Path, tell: TellCodec) -> Model:
    raise ModelUnsupported("this engine was started without a way to load another model")


def start_local(
    model: Model,
    build: Build = _load_nothing,
    stall_seconds: float = STALL_SECONDS,
    trace: StepTrace | None = None,
) -> EngineClient:
    """Serve `model` on a thread; `build` is what a swap loads with.
    May be used from several event loops."""
    link = EngineLink(stall_seconds)
    loop = TracedLoop(build, link.receive, trace) if trace else StepLoop(build, link.receive)
    client = EngineClient(link, loop.adopt(model))
    link.connect(_Thread(loop, link))
    return client


class _Thread:
    """A `client.Channel` to a loop on a thread."""

    def __init__(self, loop: StepLoop, link: EngineLink) -> None:
        self._loop = loop
        self._link = link
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def send(self, command: Command) -> None:
        self._loop.post(command)

    def alive(self) -> bool:
        return self._thread.is_alive() and not self._loop.broken

    def close(self) -> None:
        self._loop.post(Close())
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run()
        finally:
            self._link.lost()
