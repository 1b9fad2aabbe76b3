"""The process node: a Kubernetes node for development that runs pods as local processes.
See docs/process-node.md.

Read in this order: __main__ → node (registers, hands pods out) → pod (one pod's life) → container
(one container's attempts) → process. Beside them: volumes, resolve (environment), services
(addresses), kubelet (logs), and the pure ones: expand, paths, probes, backoff, status, refusals.
"""
