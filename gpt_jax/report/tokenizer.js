// tokenizer: to come.
