"""The training recipe of `shapes`."""
