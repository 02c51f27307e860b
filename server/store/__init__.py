"""The record: what users said, what was served, what was trained. Never lost, never edited, always attributable.

Knows neither torch nor fastapi. Functions here are plain and synchronous: they take an open `Session` first and
leave the transaction to `session.Store`, so that several of them can be one commit.
"""
