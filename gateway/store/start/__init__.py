"""Checks of a database before the gateway serves."""
