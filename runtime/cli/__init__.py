"""The command `qwen-image`: the entry of the process and the parser."""
