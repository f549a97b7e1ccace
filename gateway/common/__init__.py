"""Helpers without a domain of their own.

Logging, redaction, JSON schemas, Redis and time limits.
"""
