"""The operating system: files written whole, Ctrl-C, progress lines, facts of memory and machine."""
