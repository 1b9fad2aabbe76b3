"""What a PromQL expression speaks of, for tests that hold alerts and dashboards against the metrics
in the code."""

import re

_WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring"}
TARGET_LABELS = {"job", "instance", "namespace", "pod", "le"}
"""Labels that Prometheus and its operator give to every series,
and that of a histogram's bounds."""


def series_in(expression: str) -> set[str]:
    """The names of a PromQL expression that are series:
    what is no label, function, keyword, variable or string."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\boffset\s+\w+", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    return {
        name for name in re.findall(r"[a-zA-Z_:][\w:]*(?!\w|\s*\()", bare) if name not in _WORDS
    }


def labels_in(expression: str) -> set[str]:
    """The labels that it selects, groups or joins by."""
    inside = " ".join(re.findall(r"\{([^}]*)\}", expression))
    grouped = ",".join(re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression))
    return set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)) | set(re.findall(r"\w+", grouped))
