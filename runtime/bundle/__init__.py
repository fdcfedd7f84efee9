"""A bundle on disk: the manifest, the files and their hashes, and the check of the GPU that it needs."""
