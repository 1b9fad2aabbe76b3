"""Routes about the server itself: health, status, metrics, and how fast it is under load."""
