"""The files of a model's folder, and the memory that serving them takes. Knows no torch."""
