"""The definitions of tools that people define, as both servers read them."""
