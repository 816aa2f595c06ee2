"""Many prompts from a file to many answers in a file: rows in, rows out, safe to interrupt."""
