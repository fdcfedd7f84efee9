"""Graph files before an engine reads them: the operators that exports hold, the check, and weights behind links."""
