"""The layer over the operating system: atomic file writes, Ctrl-C, progress lines, facts of memory and machine."""
