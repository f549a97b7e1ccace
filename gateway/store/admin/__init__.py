"""Upkeep by administrators: audit export, user data, re-encryption."""
