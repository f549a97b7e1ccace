"""Connections of HTTP servers: their number, handshakes, and slow clients."""
