"""The learner: from what users said to a better adapter.

Letters used for tensor shapes throughout: B batch, P prompt, R response, T = P + R, V vocabulary, H hidden.
Masks are named by what True means (`is_response`, `is_pad`). A **score** is what the reward model says of a
whole response; a **reward** is per token: the KL penalty, plus the score on the last token.

The learner reads and writes Hone only through the record (`server.store`) and the adapters directory
(`server.artifacts`): it never calls a running server.
"""
