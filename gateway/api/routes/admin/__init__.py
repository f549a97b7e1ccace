"""Routes for administration: API keys and the audit log."""
