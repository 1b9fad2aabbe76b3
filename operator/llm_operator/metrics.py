"""Counters and histograms of the operator's own work, named after controller-runtime's. What the
metrics say of each object is in `inventory`."""

from prometheus_client import Counter, Gauge, Histogram

RECONCILES = Counter(
    "llm_operator_reconcile_total", "Reconciles by their result.", ["kind", "result"]
)
RECONCILE_SECONDS = Histogram(
    "llm_operator_reconcile_duration_seconds",
    "Time of one reconcile.",
    ["kind"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
QUEUE_DEPTH = Gauge("llm_operator_queue_depth", "Keys that wait for a worker.")
QUEUE_OLDEST = Gauge("llm_operator_queue_oldest_seconds", "Age of the key that has waited longest.")
RETRIES = Counter("llm_operator_retries_total", "Keys put back after an error.", ["kind"])
WRITES = Counter(
    "llm_operator_writes_total",
    "Requests to the API server that may change something.",
    ["verb", "kind"],
)
REGISTRY_CALLS = Counter(
    "llm_operator_registry_requests_total", "Requests to MLflow.", ["connection", "result"]
)
WEBHOOKS = Counter(
    "llm_operator_webhooks_total", "Deliveries of MLflow, by HTTP status.", ["connection", "status"]
)
LEADER = Gauge("llm_operator_leader", "1 while this process holds the lease.")
METRICS_API = Gauge(
    "llm_operator_metrics_api_registered",
    "1 while autoscalers are sent to this operator for metrics of the group; on the leader.",
    ["group"],
)
HEARING = Gauge(
    "llm_operator_watches_hearing",
    "1 while all watches of the kind are heard; on the leader.",
    ["kind"],
)
