"""Background tasks and bounded waits of all servers."""
