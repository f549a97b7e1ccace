"""Programs that a model writes in place of many tool calls."""
