"""Request bodies of both servers."""
