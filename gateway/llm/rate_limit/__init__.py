"""Keeps model requests within the provider's rate limits."""
