#!/usr/bin/env bash
# Most expect: a model that PyTorch runs on a CPU takes its weights, its cache and some activations, the same after an hour as
# after a minute of varied batches.
# What happens: oneDNN keeps a compiled kernel for each number of rows it has met, up to 1,024 of them by itself, whatever
# they take. Four bfloat16 layers of a 135 M model and all batches of 1 to 512 rows: about half a MiB for each pair. A
# server whose prompts have many lengths grows by hundreds of MiB and meets its container's limit hours after it was ready.
# ONEDNN_PRIMITIVE_CACHE_CAPACITY, read once when the library starts, bounds the number.
# torch 2.15.0 (oneDNN as it brings it), Python 3.11, a CPU with AVX-512. 2026-11-28
# seen: rows 1 to 512: 986 MiB more by default, 556 MiB with a capacity of 24
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check uv==0.11.32
"$work/venv/bin/uv" pip install --quiet --python "$work/venv/bin/python" torch==2.15.0 numpy==2.4.6
"$work/venv/bin/python" -c 'import torch; print("torch", torch.__version__)'
cat >"$work/rows.py" <<'PY'
import torch
import torch.nn.functional as F


def own_mib():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


torch.set_num_threads(2)
weights = [torch.randn(n, k).bfloat16() for n, k in ((576, 576), (1536, 576), (576, 1536), (192, 576))]


def step(rows):
    for weight in weights:
        F.linear(torch.randn(rows, weight.shape[1]).bfloat16(), weight)


step(512)
step(1)
before = own_mib()
for rows in range(1, 513):
    step(rows)
print(round(own_mib() - before))
PY
default="$("$work/venv/bin/python" "$work/rows.py")"
bounded="$(ONEDNN_PRIMITIVE_CACHE_CAPACITY=24 "$work/venv/bin/python" "$work/rows.py")"
echo "rows 1 to 512: $default MiB more by default, $bounded MiB with a capacity of 24"
[ "$default" -gt 200 ] && [ "$((bounded * 4))" -lt "$((default * 3))" ]
