"""Routes that pass requests on to the model's server."""
