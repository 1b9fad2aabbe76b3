"""What the server says of itself: health, status, metrics, and what it can do under load."""
