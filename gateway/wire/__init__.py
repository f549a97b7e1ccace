"""Wire formats.

They convert requests to turn requests, and events to bytes.
"""
