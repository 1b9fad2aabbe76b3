#!/usr/bin/env bash
# Most expect: the digest of an MLflow evaluation dataset says what its records are, so that two evaluations with the same
# digest had the same questions, and a changed question shows.
# What happens: it is made of the dataset's name and the time of its last change. Datasets with equal records have different
# digests, merging the very same records again gives another one, and a Python object that has seen a merge keeps its old
# one. Evidence needs a digest of the records themselves.
# mlflow 3.17.0 on SQLite. 2026-11-29
# seen: equal records, equal digest: False; same records merged again, same digest: False; object follows its own merge: False
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mlflow==3.17.0
"$work/venv/bin/pip" freeze | grep -E '^mlflow=='
cd "$work"
MLFLOW_DISABLE_TELEMETRY=true MLFLOW_TRACKING_URI="sqlite:///$work/mlflow.db" "$work/venv/bin/python" - 2>/dev/null <<'PY'
import sys
import time

from mlflow.genai.datasets import create_dataset, get_dataset

RECORDS = [{"inputs": {"question": "What is two and two?"}, "expectations": {"expected_response": "four"}}]


def made(name):
    dataset = create_dataset(name=name)
    before = dataset.digest
    dataset.merge_records(RECORDS)
    return dataset, before != dataset.digest


one, follows = made("one")
two, _ = made("two")
first = get_dataset(dataset_id=one.dataset_id).digest
equal = first == get_dataset(dataset_id=two.dataset_id).digest
time.sleep(1.1)
get_dataset(dataset_id=one.dataset_id).merge_records(RECORDS)
again = first == get_dataset(dataset_id=one.dataset_id).digest
print(
    f"equal records, equal digest: {equal}; same records merged again, same digest: {again}; "
    f"object follows its own merge: {follows}"
)
sys.exit((equal, again, follows) != (False, False, False))
PY
