"""How well a cycle learns from simulated votes, without a server."""
