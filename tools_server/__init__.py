"""The tool server: calculator, web search and tasks over the Model Context Protocol."""
