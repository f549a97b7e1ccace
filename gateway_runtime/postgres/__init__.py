"""Connections to PostgreSQL, their addresses and their errors."""
