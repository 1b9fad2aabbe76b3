"""The configuration file, with the line on which each key stands."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic.alias_generators import to_snake

Location = tuple[str | int, ...]
"""Where a value stands: keys in snake case, and indices."""


class FileInvalid(ValueError):
    """No YAML, or none that could be a configuration."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says. Keys come out in Python's spelling, so that an override meets what it overrides."""

    content: dict[str, Any] = field(default_factory=dict)
    lines: dict[Location, int] = field(default_factory=dict)
    """From 1 on."""
    repeated: tuple[Location, ...] = ()
    """Keys that stand in one place twice, of which YAML would quietly take the last."""

    def line(self, location: Location) -> int | None:
        """Of the value itself, or of what it should be in."""
        for length in range(len(location), 0, -1):
            if line := self.lines.get(location[:length]):
                return line
        return None


def read(file: Path) -> Document:
    """Read YAML, hence JSON too. Raises `FileInvalid`."""
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
    # A section of which everything is commented out.
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
    """Set `value` in a place of `content`, and make the sections around it."""
    for part in place[:-1]:
        if not isinstance(content.get(str(part)), dict):
            content[str(part)] = {}
        content = content[str(part)]
    content[str(place[-1])] = value
