"""Delivers the messages of webhooks."""
