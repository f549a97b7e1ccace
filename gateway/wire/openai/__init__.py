"""OpenAI's other formats, and parts of its chat completions."""
