"""Protocols that the agent calls and the other packages implement."""
