"""Routes for front ends in the browser: the AI SDK and AG-UI."""
