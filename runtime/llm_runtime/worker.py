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
from collections.abc import Callable
from pathlib import Path

from llm_runtime import logs, settings
from llm_runtime.engine.loop import StepLoop
from llm_runtime.engine.messages import Frames, Report, frame
from llm_runtime.engine.model import Build
from llm_runtime.engine.trace import StepTrace, TracedLoop

READ_BYTES = 1 << 18

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    from llm_runtime.loading.build import build_model

    run(build_model)


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
