"""All outgoing I/O of the operator: the cluster, the model registries, the runtime's pods,
Prometheus."""
