"""From a folder to a model that answers, with torch: read, pack, check, warm."""
