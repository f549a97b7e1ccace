"""History of conversations that is too long for the model."""
