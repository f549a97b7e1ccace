"""Turns as tasks of MCP hosts, see docs/tasks.md."""
