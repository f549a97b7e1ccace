"""Fuzzing of both servers over HTTP."""
