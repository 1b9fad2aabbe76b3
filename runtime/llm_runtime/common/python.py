"""How this program starts a child of its own."""

import sys

PYTHON = (sys.executable, "-P")
"""The working folder may be a model's: without -P a child's imports would look there first."""
