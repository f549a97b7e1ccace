"""AG-UI: requests, answers and errors."""
