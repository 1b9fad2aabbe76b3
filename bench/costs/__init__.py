"""What others cost a client: a key that is refused again and again,
and copies of its requests for a candidate."""
