"""Tokenizers that tiktoken saves, made into a tokenizer.json."""
