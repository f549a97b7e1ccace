"""JSON schemas of others: size, form, and validation in bounded time."""
