"""The table of the chart's values, from the comments in values.yaml and the types in
values.schema.json.

`python -m devstack.chart_values CHART` prints the chart's README.md with a fresh table;
hack/generate calls it. A comment belongs to the key below it. Raises ValueError for a value without
a comment of its own or above it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from devstack.reference import table

Json = dict[str, Any]
BEGIN = "<!-- values: made by hack/generate from values.yaml -->\n"
END = "<!-- end of values -->\n"


def main() -> None:
    """Print the page for the chart named on the command line."""
    print(page(Path(sys.argv[1])), end="")


def page(chart: Path) -> str:
    """README.md of the chart with the table that belongs to its values.yaml."""
    text = (chart / "README.md").read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(
            f"{chart / 'README.md'} has lost the two lines between which the values belong"
        )
    before = text.split(BEGIN)[0]
    after = text.split(END)[1]
    return f"{before}{BEGIN}\n{values(chart)}\n\n{END}{after}"


def values(chart: Path) -> str:
    """The table alone."""
    text = (chart / "values.yaml").read_text()
    schema = json.loads((chart / "values.schema.json").read_text())
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{chart / 'values.yaml'} is not a mapping")
    return table(
        ("value", "type", "default", "what for"),
        rows(root, "", text.splitlines(), schema, schema, ""),
    )


def rows(
    node: yaml.MappingNode, prefix: str, lines: list[str], schema: Json, root: Json, above: str
) -> Iterator[tuple[str, ...]]:
    """One row for each value that is no section of others;
    `above` is the comment of the section."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        said = comment(lines, key.start_mark.line)
        kind = resolved(_property(schema, key.value), root)
        if isinstance(value, yaml.MappingNode) and value.value and "properties" in kind:
            yield from rows(value, f"{name}.", lines, kind, root, said or above)
            continue
        if not (said or above):
            raise ValueError(f"values.yaml: {name} has no comment, and nothing above it has one")
        yield (
            f"`{name}`",
            type_of(kind),
            f"`{json.dumps(plain(value), ensure_ascii=False)}`",
            said or above,
        )


def comment(lines: list[str], number: int) -> str:
    """The comment lines directly above a line, as one."""
    found: list[str] = []
    while number and lines[number - 1].lstrip().startswith("#"):
        number -= 1
        found.insert(0, lines[number].strip().removeprefix("#").strip())
    return " ".join(found)


def plain(node: yaml.Node) -> Any:
    return yaml.safe_load(yaml.serialize(node))


def _property(schema: Json, name: str) -> Json:
    found = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
    if not isinstance(found, dict):
        raise ValueError(f"values.schema.json does not know {name}")
    return found


def resolved(schema: Json, root: Json) -> Json:
    """A schema without its reference."""
    reference = schema.get("$ref")
    return root["definitions"][reference.rpartition("/")[2]] if reference else schema


def type_of(schema: Json) -> str:
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    kind = schema.get("type", "any")
    return " or ".join(kind) if isinstance(kind, list) else {"array": "list"}.get(kind, str(kind))


if __name__ == "__main__":
    main()
