"""Who asks: keys from files and databases, their tiers."""
