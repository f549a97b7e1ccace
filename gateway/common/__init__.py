"""Helpers without a domain of their own: logging, redaction, JSON schemas, Redis, time limits."""
