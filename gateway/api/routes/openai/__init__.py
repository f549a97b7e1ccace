"""Routes that OpenAI and Groq clients call."""
