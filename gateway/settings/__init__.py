"""The settings by topic. `gateway.config.Settings` joins them."""
