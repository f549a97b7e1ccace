"""Observed variants of the gateway's parts.

Each module has subclasses of parts of the gateway, or wrappers, that `composition/` puts in their place while traces or
metrics are on. The parts themselves call nothing, so that everything is as fast without.
"""
