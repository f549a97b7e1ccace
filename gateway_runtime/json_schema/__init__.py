"""JSON schemas of others: their size and form, and validation in bounded time."""
