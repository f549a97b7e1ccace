"""Routes of the older projects, kept for their clients."""
