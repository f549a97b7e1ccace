"""Lists of rows that are bounded in bytes."""
