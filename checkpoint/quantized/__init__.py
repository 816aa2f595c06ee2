"""Checkpoints that other tools have quantized, their weights seen plain: one module a format."""
