"""Full-text search: terms, queries and snippets."""
