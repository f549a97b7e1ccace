"""HTTP transports that check and limit the traffic of a connection."""
