"""The engine's process: `python -m llm_runtime.worker LOG_FORMAT LOG_LEVEL STEP_TRACE SOCKET`.

`engine.process` starts it. It lives as long as the other end of its socket. Signals are the other
process's business: SIGTERM to the whole group must not end the engine while the HTTP process still
drains.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from llm_runtime import logs, settings
from llm_runtime.contract import RuntimeConfig
from llm_runtime.engine.loop import StepLoop
from llm_runtime.engine.messages import Frames, Report, frame
from llm_runtime.engine.model import Build, Model, TellCodec
from llm_runtime.engine.trace import StepTrace, TracedLoop
from llm_runtime.machine.steps import SLOW_SECONDS

READ_BYTES = 1 << 18

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    imports = threading.Thread(target=_import, name="imports", daemon=True)
    imports.start()

    def build(config: RuntimeConfig, folder: Path, tell: TellCodec) -> Model:
        # One thread imports: two that need each other's modules might see half of one.
        imports.join()
        from llm_runtime.loading.build import build_model

        return build_model(config, folder, tell)

    run(build)


def _import() -> None:
    """What every model needs, while the other process still prepares.
    Whatever fails here fails again when a model is built, and is told then."""
    began = time.monotonic()
    try:
        from llm_runtime.loading.lean import import_lean

        import_lean()
        from llm_runtime.loading import build, load, runners  # noqa: F401
    except Exception as error:
        log.info("Importing ahead failed", exc_info=error)
        return
    if (seconds := time.monotonic() - began) > SLOW_SECONDS:
        log.info("torch and Transformers are imported", extra={"seconds": round(seconds, 1)})


def run(build: Build) -> None:
    """Serve what `build` builds. Does not return."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    log_format, log_level, step_trace, descriptor = sys.argv[1:]
    logs.hide(settings.private_values())
    logs.configure("console" if log_format == "console" else "json", log_level)
    connection = socket.socket(fileno=int(descriptor))
    send = _sender(connection)
    loop = (
        TracedLoop(build, send, StepTrace(Path(step_trace)))
        if step_trace
        else StepLoop(build, send)
    )
    threading.Thread(target=_read, args=(connection, loop), name="commands", daemon=True).start()
    status = 1
    try:
        loop.run()
        status = int(loop.broken)
    except Exception:
        log.exception("The engine gave up")
    _leave(status)


def _sender(connection: socket.socket) -> Callable[[Report], None]:
    def send(report: Report) -> None:
        """Blocks while the other end is slow, which is what should slow the engine down."""
        try:
            connection.sendall(frame(report))
        except OSError:
            _leave(0)

    return send


def _read(connection: socket.socket, loop: StepLoop) -> None:
    """Always reading, so that the other end can always write."""
    frames = Frames()
    while data := _received(connection):
        for command in frames.feed(data):
            loop.post(command)
    _leave(0)


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(READ_BYTES)
    except OSError:
        return b""


def _leave(status: int) -> None:
    """End the process at once: another thread may be deep in native code, and nobody is left to
    wait for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
