"""The full runs behind the figures in the docs.

`python -m tests.prove [NAME …]` runs every case that has no line yet for today's code and appends one JSON line
per case to `docs/proof/<name>.jsonl`: what was run, on which commit, and what came out. Kill it and start it
again: finished cases are not repeated. After every line `page` makes `docs/proof.md` anew: what the lines show.
"""
