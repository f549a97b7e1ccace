"""Routes for administration: API keys, statistics and the audit log."""
