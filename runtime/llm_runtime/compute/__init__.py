"""What runs the model, with torch: attention, caches, adapters, kernels, sampling."""
