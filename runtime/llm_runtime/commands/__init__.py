"""The command line's verbs beside `serve` and `fetch`:
one module each, registered in `__main__`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from llm_runtime import errors


@contextmanager
def faults(verb: str, status: int = 1) -> Iterator[None]:
    """Report a fault to a person at a terminal:
    one line without a traceback, and this exit status."""
    try:
        yield
    except errors.Fatal as fatal:
        typer.echo(f"{verb}: {fatal}", err=True)
        raise typer.Exit(status) from fatal
    except PermissionError as denied:
        typer.echo(
            f"{verb}: user {os.geteuid()} may not open {denied.filename}: change its mode, or run"
            ' this as the user whose it is (in a container: --user "$(id -u)")',
            err=True,
        )
        raise typer.Exit(status) from denied
