"""Parts of an address of PostgreSQL: its parameters and its TLS context."""
