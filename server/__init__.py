"""The server: everything between a chat frontend and the weights that answer.

Imports go one way. The learner may import `settings`, `logs`, `errors`, `prompts`, `modeling`, `decoding`, `scoring`,
`store` and `artifacts`; nothing here ever imports the learner. `store` imports neither torch nor fastapi,
`engine` does not know the store, `errors` does not know HTTP. `tests/test_architecture.py` checks all of it.
"""
