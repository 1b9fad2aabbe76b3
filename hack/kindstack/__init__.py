"""A real kind cluster on this machine,
from packages alone where no container registry can be reached."""
