"""Traces, metrics and logs of both servers, by OpenTelemetry and Prometheus.

The libraries are imported only when something is switched on. `trace_context` imports neither.
"""
