"""Dead code: what vulture finds that nobody uses,
but for what somebody outside of this code reads."""

import re
import subprocess
import sys
from collections.abc import Iterator

from habits.code import PARTS, ROOT

SCRIPTS = ("hack/demo", "hack/lock", "hack/kube/build")
DECORATORS = (
    "@*.get",
    "@*.post",
    "@*.put",
    "@*.patch",
    "@*.delete",
    "@*.command",
    "@*validator",
    "@*compiles",
    "@register_quanti*",
)
"""What FastAPI, Typer, Pydantic, SQLAlchemy and Transformers call."""
FILES = {
    "tests/": "tests are found by pytest",
    "operator/llm_operator/crds/": "fields are passed to Kubernetes whole",
    "operator/llm_operator/plans/reasons.py": "reasons are chosen by their name",
}
NAMES = {
    "fields of an answer, written to JSON whole": (
        "generated_text", "max_entries", "max_model_len", "prefill_tokens", "processing_time", "request_time",
        "schedule", "token_strs", "tokens_generated",
    ),
    "a quantiser's, which Transformers calls": (
        "dequantize", "is_serializable", "is_trainable", "_process_model_before_weight_loading",
    ),
    "columns of a benchmark's table": ("events_per_token", "microseconds_per_token"),
    "read by a program that the benchmark starts": ("BARE", "HASHED", "OURS", "read_all"),
    "attributes that a library reads: kopf, aiohttp, ssl, uvicorn, starlette, SQLAlchemy, RE2, http.server, requests": (
        "address_family", "block_on_close", "cache_ok", "chunk_size", "chunked_encoding",
        "client_session_kwargs", "client_timeout", "connect_timeout", "converter", "daemon_threads",
        "default_msec_format", "default_time_format", "diffbase_storage", "error_backoffs",
        "expected_content_length", "force_exit",
        "impl", "inactivity_timeout", "isolation_level", "_srcfile", "log_errors", "logMultiprocessing",
        "logProcesses", "logThreads", "media_type", "request_timeout", "server_hostname", "server_timeout",
        "should_exit", "standalone", "timeout_graceful_shutdown", "verify",
    ),
    "an attribute that tokenizers reads": ("post_processor",),
    "methods that a library calls": (
        "_as_it_is", "allow_in_graph", "assume_constant_result", "capture_signals", "create_module",
        "extra_repr", "log_message", "process_bind_param", "process_result_value",
        "visit_Concat",
        "visit_Getitem",
    ),
    "Jinja's sandbox: attributes it reads, parameters it passes by place": ("__self", "concat", "intercepted_binops"),
    "a parameter that Transformers passes by name": ("dropout",),
    "fields of a structure that the C++ kernel reads": (
        "cosines", "key_head", "key_row", "query_head", "query_row", "sines", "span_tiles", "value_head", "value_row",
    ),
    "tasks that are kept so that they are not collected": ("_ending", "killer"),
    "an import for type checkers, in a string": ("SpanProcessor",),
}  # fmt: skip


def unused_code() -> Iterator[str]:
    """A line for each thing that nobody uses,
    and for each allowance that nothing needs any more."""
    command = [
        sys.executable,
        "-m",
        "vulture",
        "--exclude",
        "*/migrations/*",
        "--ignore-decorators",
        ",".join(DECORATORS),
    ]
    found = subprocess.run([*command, *PARTS, *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    allowed = {name for names in NAMES.values() for name in names}
    needed = set[str]()
    for line in found.stdout.splitlines():
        name = match[1] if (match := re.search(r"'(\w+)'", line)) else ""
        if name in allowed:
            needed.add(name)
        elif not line.startswith(tuple(FILES)):
            yield f"{line}: delete it, or say in hack/habits/unused.py who uses it"
    if found.stderr:
        yield found.stderr
    yield from (
        f"hack/habits/unused.py allows {name}, which is used or gone: remove it"
        for name in allowed - needed
    )
