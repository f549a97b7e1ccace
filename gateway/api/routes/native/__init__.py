"""Routes of the gateway's own API under /api/v1."""
