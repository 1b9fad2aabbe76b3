#!/usr/bin/env bash
# Most expect: Transformers' lazy modules look once, at import, at what each of its source files offers, and the cache around that
# look (functools.lru_cache) spares it afterwards.
# What happens: the cache keeps the last 128 folders, and `transformers/models` has some 550. It is walked once by
# `import transformers` and once by the import of `transformers.models`, which every Auto class needs. Each folder has been dropped
# again before its turn comes: no folder is found, and 1,600 source files are read and searched a second time, at every start.
# transformers 5.23.0. 2026-11-30
# seen: cache of 128; after import transformers: 0 hits, 549 folders; after transformers.models: 0 hits, 1,098 folders
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0
"$work/venv/bin/pip" freeze | grep -E '^transformers=='
"$work/venv/bin/python" - <<'PY'
import sys

import transformers
from transformers.utils import import_utils

look = import_utils.create_import_structure_from_path
first = look.cache_info()
import transformers.models

second = look.cache_info()
print(
    f"cache of {first.maxsize}; after import transformers: {first.hits} hits, {first.misses:,} folders;"
    f" after transformers.models: {second.hits} hits, {second.misses:,} folders"
)
sys.exit(not (first.maxsize == 128 and second.hits == 0 and second.misses > 1.9 * first.misses > 500))
PY
