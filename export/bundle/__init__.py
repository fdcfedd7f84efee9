"""`qwen-image export`: from checkpoint to bundle, atomically, reusing each part that is unchanged."""
