"""Embeddings, audio, files and batches of the model's server."""
