"""Native CPU kernels, and the executor that runs a whole tape in one call: see `_native`."""
