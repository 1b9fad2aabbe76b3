"""What is told: conditions, their reasons, faults in words, verdicts."""
