#!/usr/bin/env bash
# Most expect: `settings.watching.label_selectors["kopf.dev/kopfexamples"] = "…"`, the first form that kopf's own text on these
# settings shows, has the API server filter what an operator lists and watches of that resource. So would "apps/v1/deployments".
# What happens: neither matches any resource. A single string is read as NAME.GROUP, so the group becomes "dev/kopfexamples".
# Nothing is said, and every object of the cluster is sent to the operator. A tuple matches: ["kopf.dev", "kopfexamples"].
# kopf 1.45.2. 2026-11-29
# seen: one string: []; one string with its version: []; a tuple: ['a=b']
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check kopf==1.45.2
"$work/venv/bin/pip" freeze | grep -E '^kopf=='
"$work/venv/bin/python" - <<'PY'
import sys

import kopf
from kopf._cogs.structs.references import Resource

EXAMPLES = Resource(group="kopf.dev", version="v1", plural="kopfexamples", namespaced=True)


def filters(key):
    selectors = kopf.OperatorSettings().watching.label_selectors
    selectors[key] = "a=b"
    return selectors.collect(EXAMPLES)


one = filters("kopf.dev/kopfexamples")
versioned = filters("kopf.dev/v1/kopfexamples")
pair = filters(("kopf.dev", "kopfexamples"))
print(f"one string: {one}; one string with its version: {versioned}; a tuple: {pair}")
sys.exit((one, versioned, pair) != ([], [], ["a=b"]))
PY
