"""The tool server.

Calculator, web search and tasks over the Model Context Protocol.
"""
