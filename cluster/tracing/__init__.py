"""Spans of episodes for a collector that speaks OpenTelemetry's protocol, where the configuration names one."""
