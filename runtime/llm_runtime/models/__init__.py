"""From a registry to weights in memory: `fetch` → `locate` → `load` → `build`."""
