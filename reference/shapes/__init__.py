"""The `shapes` checkpoint: a small real checkpoint of the released architecture, its training recipe and its judge."""
