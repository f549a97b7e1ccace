"""Tokenizers of model families, loaded on first use."""
