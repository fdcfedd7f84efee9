"""A bundle on disk: its manifest, its files and hashes, the GPU that it needs."""
