"""Callers' toolsets over the toolbox."""
