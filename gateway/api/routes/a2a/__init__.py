"""Routes of the Agent2Agent protocol."""
