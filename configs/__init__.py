"""What a model is: the TOML files, their schema and loader, and the root of the error tree."""
