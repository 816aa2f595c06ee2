"""nanochat's own checkpoints: their eras, folders and tokenizer."""
