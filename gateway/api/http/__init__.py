"""HTTP basics of the gateway.

Errors, body limits, request context, the OpenAPI document and the protocol class.
"""
