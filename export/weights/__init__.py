"""Weight files: external data, quantised weights, hashes."""
