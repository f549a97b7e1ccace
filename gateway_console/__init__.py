"""The web console, a client of the gateway's public HTTP API.

It is a process of its own.
"""
