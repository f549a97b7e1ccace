"""One module for each model provider."""
