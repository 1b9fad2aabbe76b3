"""What this process may take of its machine: memory, threads, heaps. Knows no torch."""
