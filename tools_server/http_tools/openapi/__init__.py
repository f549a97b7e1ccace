"""Import of OpenAPI 3 documents: operations become definitions."""
