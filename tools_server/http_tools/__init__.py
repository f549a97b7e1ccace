"""Tools that people define: HTTP requests, kept in Postgres."""
