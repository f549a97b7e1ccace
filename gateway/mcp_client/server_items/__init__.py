"""Resources and prompts of servers: lists, requests and announced updates."""
