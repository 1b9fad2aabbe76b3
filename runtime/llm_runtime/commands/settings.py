"""`llm-runtime settings`: configuration files of other servers."""

from pathlib import Path
from typing import Annotated

import typer

from llm_runtime import errors
from llm_runtime.commands import faults

cli = typer.Typer(help="Work with configuration files.", no_args_is_help=True)

Old = Annotated[Path, typer.Argument(help="The old file, such as config.yml.")]
Output = Annotated[
    Path | None, typer.Option("--output", help="The new file. None: standard output.")
]


@cli.command()
def convert(old: Old, output: Output = None) -> None:
    """Rewrite a configuration with the names of other servers.

    Comments say what belongs into the environment, or nowhere. A key is never copied.
    """
    from llm_runtime.settings import converted
    from llm_runtime.settings.file import FileInvalid

    with faults("settings convert"):
        try:
            text = converted.convert(old).text()
            if output is None:
                typer.echo(text, nl=False)
            elif output.exists():
                raise errors.ConfigInvalid(f"{output} exists; name a new file")
            else:
                output.write_text(text, encoding="utf-8")
        except (FileInvalid, OSError) as error:
            raise errors.ConfigInvalid(str(error)) from error
