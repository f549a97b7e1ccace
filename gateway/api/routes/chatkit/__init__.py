"""The route of ChatKit."""
