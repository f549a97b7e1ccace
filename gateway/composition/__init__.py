"""Builds and connects all parts. Only this package imports every other one."""
