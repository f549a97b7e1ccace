"""Results of servers: made to fit the protocol, and cut for models."""
