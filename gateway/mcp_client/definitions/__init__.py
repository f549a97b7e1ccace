"""Definitions of tools, resources and prompts: repaired, bounded and read in pages."""
