"""The operator: watches LLMDeployment and ApiKey,
resolves MLflow versions, reconciles runtime pods."""
