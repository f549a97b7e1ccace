"""OpenAI-compatible routes, for OpenAI and Groq clients."""
