"""Runtime support that the gateway and the tool server share."""
