"""Source checkpoint -> MLX model folder. Imports `checkpoint` and `configs`."""
