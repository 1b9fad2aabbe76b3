"""What a fetched folder really holds, as its manifest says: an alias or a branch names a version or a commit."""

import re
from dataclasses import dataclass
from pathlib import Path

from llm_runtime.models.verify import read_manifest


@dataclass(frozen=True, slots=True)
class Origin:
    """No address and no credential: it is shown to whoever asks."""

    name: str
    version: str
    """A version's number, a commit, a logged model's or a run's id."""
    source: str


_FORMS = (
    re.compile(r"(?P<source>models:/(?P<name>[^/\s]+)/(?P<version>\d+))(?:[\s#]|$)"),
    re.compile(r"(?P<source>hf://(?P<name>[\w.-]+/[\w.-]+)@(?P<version>\S+))$"),
    re.compile(r"(?P<source>models:/(?P<name>(?P<version>m-[0-9a-f]+)))$"),
    re.compile(r"(?P<source>runs:/(?P<version>\w+)/(?P<name>\S+))$"),
)


def origin(folder: Path) -> Origin | None:
    """Of a folder that `fetch` has made; None for any other, and for places that have no versions."""
    source = str(read_manifest(folder).get("source", ""))
    found = next((match for form in _FORMS if (match := form.search(source))), None)
    return Origin(found["name"], found["version"], found["source"]) if found else None
