"""Usage of passed-on requests, and owners of files and batches."""
