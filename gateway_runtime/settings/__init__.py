"""Values of settings that both servers read in the same way."""
