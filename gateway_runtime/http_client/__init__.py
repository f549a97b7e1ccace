"""Small HTTP/1.1 client whose responses are pushed to their readers."""
