"""The simulated world: a place small enough to know everything about, so that learning in it can be proved.

`world` generates dialogues, `parser` reads them back, `raters` are people with hidden tastes and `pretrain`
makes the demo model from the world's dialogues. Nothing here is imported by the server or by a learning cycle.
"""
