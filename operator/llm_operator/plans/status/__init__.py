"""What the status says: conditions, faults in words, downloads, adapters, and verdicts for the
registry."""
