"""Evaluations: sets of cases with canned tools, and their results.

cases.py    the file: prompts, tools, and what must happen
toolbox.py  tools with canned results
agent.py    runs a case with the gateway's own agent loop
checks.py   compares a run with what must happen
results.py  counts, the stored last run, and the table
"""
