"""Which exact version or commit a fetched folder holds, according to its manifest."""

import re
from dataclasses import dataclass
from pathlib import Path

from llm_runtime.files.verify import read_manifest


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a served model comes from. Public, so without addresses and credentials."""

    name: str
    version: str
    """A version's number, a commit, or the id of a run or a logged model."""
    source: str


_FORMS = (
    re.compile(r"(?P<source>models:/(?P<name>[^/]+)/(?P<version>\d+))(?:[\s#]|$)"),
    re.compile(r"(?P<source>hf://(?P<name>[\w.-]+/[\w.-]+)@(?P<version>\S+))$"),
    re.compile(r"(?P<source>models:/(?P<name>(?P<version>m-[0-9a-f]+)))$"),
    re.compile(r"(?P<source>runs:/(?P<version>\w+)/(?P<name>\S+))$"),
)


def origin(folder: Path) -> Origin | None:
    """The origin of a folder that `fetch` made;
    None for other folders, and for sources that have no versions."""
    source = str(read_manifest(folder).get("source", ""))
    match = next(filter(None, (form.search(source) for form in _FORMS)), None)
    return Origin(match["name"], match["version"], match["source"]) if match else None
