"""Kinds of columns, and tables of single topics."""
