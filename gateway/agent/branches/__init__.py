"""Forks and replays, which use steps and results of other turns."""
