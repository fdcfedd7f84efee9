"""LoRA adapters: files, naming styles, scaling, merging."""
