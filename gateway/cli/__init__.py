"""The agent-gateway command."""
