"""HTTP: errors, body limits, request context, the OpenAPI document and the protocol class."""
