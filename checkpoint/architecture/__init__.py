"""What a checkpoint means: the architecture, its config made explicit, its tensors' names."""
