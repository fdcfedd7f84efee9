"""The prompt template, the tokenizer and the embedding table."""
