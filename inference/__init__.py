"""MLX model folder -> text. Imports `checkpoint` and `configs`, never `convert`."""
