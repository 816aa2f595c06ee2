"""What a model is: the TOML files, their schema and loader, and the root of the error tree."""

__version__ = "0.1.0"
