"""The evaluation of a candidate: records of a dataset are asked of it and of stable,
and their answers are scored.

It runs as `llm-operator evaluate` in a Job beside the operator:
MLflow's credentials never get to a tenant's namespace.
"""
