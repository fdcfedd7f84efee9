"""Arguments, texts and output files that several verbs share."""
