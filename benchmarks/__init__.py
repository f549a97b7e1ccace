"""Benchmarks of the gateway and of comparable servers. See README.md."""
