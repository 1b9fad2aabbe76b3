"""From a registry, a store or the Hub to a verified folder on the disk. Knows no torch."""
