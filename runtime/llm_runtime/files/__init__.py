"""What lies in a model's folder, and what it will take to serve it. Knows no torch."""
