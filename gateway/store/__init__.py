"""Postgres: tables, repositories, the journal and the message bus."""
