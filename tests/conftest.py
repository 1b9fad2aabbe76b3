"""What every tier has."""

pytest_plugins = ["secrets_told"]
