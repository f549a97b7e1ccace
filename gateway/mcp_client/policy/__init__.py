"""Wrappers around a toolbox, one duty each, that hold for every caller and route."""
