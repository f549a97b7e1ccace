"""The JSON of the Agent2Agent protocol (A2A), version 1.0."""
