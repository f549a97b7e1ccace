"""Messages, events and errors: the values that every other package exchanges."""
