"""The UI message stream of the AI SDK: requests, answers and errors."""
