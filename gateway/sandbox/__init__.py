"""Programs that models write, run apart from the gateway."""
