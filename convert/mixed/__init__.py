"""Mixed bits: each layer's own bits, group size and mode, to lose least at a given size."""
