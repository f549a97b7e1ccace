"""Server processes: supervision, sockets, signals and TLS."""
