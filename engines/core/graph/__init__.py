"""Graph files: the operators that exports hold, and the check of a file against them before an engine reads it."""
