"""Redaction of texts by the rules of an administrator."""
