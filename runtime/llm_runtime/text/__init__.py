"""Text and tokens: chat templates, the tokenizer, what each token adds. Knows no torch."""
