"""Model clients: streaming, retries, rate limits and repair of malformed output."""
