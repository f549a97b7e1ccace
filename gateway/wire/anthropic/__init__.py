"""Anthropic's Messages format: requests, answers and errors."""
