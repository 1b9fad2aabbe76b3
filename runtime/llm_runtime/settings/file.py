"""The configuration file, with the line of each key."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic.alias_generators import to_snake

Location = tuple[str | int, ...]
"""The place of a value: keys in snake case, and indices."""


class FileInvalid(ValueError):
    """The file is not YAML, or not a configuration."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file's contents. Keys are in Python's spelling,
    so that an override matches the key that it overrides."""

    content: dict[str, Any] = field(default_factory=dict)
    lines: dict[Location, int] = field(default_factory=dict)
    """Line numbers, from 1."""
    repeated: tuple[Location, ...] = ()
    """Duplicate keys, of which YAML would silently use the last."""

    def line(self, location: Location) -> int | None:
        """The line of the value, or of the section that it should be in."""
        for length in range(len(location), 0, -1):
            if line := self.lines.get(location[:length]):
                return line
        return None


def read(file: Path) -> Document:
    """Read YAML, and therefore also JSON. Raises `FileInvalid`."""
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise FileInvalid(f"{file}: can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or root is None:
        raise FileInvalid(f"{file}: must hold an object with `model`, `engine`, `server`")
    found = list(_keys(root, ()))
    places = [location for location, _ in found]
    repeated = tuple({place for place in places if places.count(place) > 1})
    # The section's contents are all commented out.
    given = {name: value for name, value in content.items() if value is not None}
    return Document(_snake(given), dict(found), repeated)


def _snake(content: Any) -> Any:
    if isinstance(content, dict):
        return {to_snake(str(name)): _snake(value) for name, value in content.items()}
    return [_snake(item) for item in content] if isinstance(content, list) else content


def _keys(node: yaml.Node, place: Location) -> Iterator[tuple[Location, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*place, to_snake(str(key.value)))
            yield here, key.start_mark.line + 1
            yield from _keys(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*place, index), value.start_mark.line + 1
            yield from _keys(value, (*place, index))


def put(content: dict[str, Any], place: Location, value: Any) -> None:
    """Set `value` at a place of `content`, and create the sections around it."""
    for part in place[:-1]:
        if not isinstance(content.get(str(part)), dict):
            content[str(part)] = {}
        content = content[str(part)]
    content[str(place[-1])] = value
