"""Toolsets, from the setting and defined at run time."""
