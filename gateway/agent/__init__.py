"""Runs turns: the agent loop, tool calls, budgets and takeover, behind ports."""
