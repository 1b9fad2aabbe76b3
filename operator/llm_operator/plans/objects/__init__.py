"""Builders of the objects that an LLMDeployment is made of: each a literal shaped like its YAML."""
