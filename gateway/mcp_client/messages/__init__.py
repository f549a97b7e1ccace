"""JSON-RPC messages of servers."""
