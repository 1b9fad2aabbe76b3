"""What the demo shows: chapters, commands as a person would type them,
a spinner on every long step."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from devstack.waits import waiting

console = Console(highlight=False, soft_wrap=True)
Result = TypeVar("Result")


class CommandFailed(RuntimeError):
    """A command of the demo ended with an error; the message is what it printed."""


def chapter(title: str) -> None:
    """Begin a part of the story."""
    console.print()
    console.rule(Text(title, style="bold cyan"), align="left")


def say(text: str) -> None:
    """One line of explanation between the commands."""
    console.print(Text(text, style="dim"))


@contextmanager
def step(title: str, state: Callable[[], str] | None = None) -> Iterator[Callable[[str], None]]:
    """A long step. What it waits for is asked of `state()`,
    or said by the block through the function it is given.

    On a terminal a spinner shows that beside the seconds so far;
    in a log it is a line now and then.
    """
    started = time.monotonic()
    doing = ""

    def now(text: str) -> None:
        nonlocal doing
        doing = text

    def line() -> str:
        text = state() if state else doing
        return f"{title}: {text}" if text else title

    if console.is_terminal:
        with console.status(Text(title)) as status:

            def show(text: str) -> None:
                status.update(Text(text))

            with waiting(line, show, every_seconds=1.0):
                yield now
    else:
        console.print(f"… {title}")
        with waiting(lambda: f"  … {line()}", say):
            yield now
    console.print(f"[green]✓[/] {title} [dim]{time.monotonic() - started:.1f} s[/]")


def typed(command: str) -> None:
    """Show a command as a person would type it."""
    console.print(Text("$ ", style="bold green") + Text(command, style="bold"))


class Shell:
    """Runs commands in the open: prints each one as typed, then its output."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = {**os.environ, **env}

    def run(self, command: str, *, stdin: str | None = None, show: bool = True) -> str:
        """Run a shell command line and return its standard output; raises `CommandFailed`.

        One that is shown says so when it takes longer; who runs one unseen tells of the wait.
        """
        if show:
            typed(command)
        with waiting(lambda: "  … this command still runs", say) if show else nullcontext():
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command],
                input=stdin,
                capture_output=True,
                text=True,
                env=self.env,
                check=False,
            )
        if show and (output := done.stdout.rstrip()):
            console.print(Text(output, style="dim"))
        if done.returncode:
            raise CommandFailed(f"{command}\n{done.stdout}{done.stderr}")
        return done.stdout

    @contextmanager
    def follow(self, command: Sequence[str], state: Callable[[], str]) -> Iterator[None]:
        """Let a command that watches something print beneath the block, and end it with the block.

        What it does not tell, `state()` does, every few seconds.
        """
        typed(shlex.join(command))
        watcher = subprocess.Popen(
            command, env=self.env, stdout=sys.stdout, stderr=subprocess.DEVNULL
        )
        try:
            with waiting(lambda: f"  … {state()}", say):
                yield
        finally:
            watcher.terminate()
            watcher.wait()


def until(holds: Callable[[], Result | None], what: str, timeout_seconds: float) -> Result:
    """Poll twice a second until `holds()` is truthy;
    raises `CommandFailed` naming `what` when the time is up."""
    deadline = time.monotonic() + timeout_seconds
    with waiting(lambda: f"  … waiting for {what}", say):
        while time.monotonic() < deadline:
            if result := holds():
                return result
            time.sleep(0.5)
    raise CommandFailed(f"{what}: not within {timeout_seconds:.0f} s")
