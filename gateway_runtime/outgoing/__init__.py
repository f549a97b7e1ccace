"""HTTP requests to addresses that somebody else names."""
