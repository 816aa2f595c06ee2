"""GGUF files, llama.cpp's: their header, their tensors, their config and their tokenizer."""
