"""Limits for each caller: requests, open streams and admission of new turns."""
