"""Measurements, apart from the tests: slower, and with figures as their result."""
