"""The server about itself: health, status, metrics, and how fast it is under load."""
