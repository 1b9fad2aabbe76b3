"""What the server remembers for clients: conversations by `session_id`, and responses by their
id."""

from llm_runtime.sessions.conversations import Message, Sessions
from llm_runtime.sessions.responses import RUNNING, Responses, Stored

__all__ = ["RUNNING", "Message", "Responses", "Sessions", "Stored"]
