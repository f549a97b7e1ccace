"""HTTP plumbing: errors, body limits, request context, OpenAPI and the protocol class."""
