"""The user's tasks, in Postgres: table, store, tools."""
