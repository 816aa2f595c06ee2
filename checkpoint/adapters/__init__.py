"""Adapters: small files of what fine-tuning adds to a model."""
