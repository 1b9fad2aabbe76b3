"""The evaluation of a candidate: records of a dataset are asked of it and of stable, and their answers are scored.

It runs as `llm-operator evaluate` in a Job beside the operator, which alone knows both MLflow's credentials and the key.
"""
