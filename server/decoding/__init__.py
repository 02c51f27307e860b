"""Generation in plain torch: a step loop, many adapter versions in one batch, exact log probabilities.

Owns key/value slots, sampling, adapters per row, and text as it appears. Refuses to know event loops, threads, queues
between them, and HTTP: `server.engine.local` feeds it from live requests, the learner runs it offline.
"""

from server.decoding.bank import AdapterBank, Prepared
from server.decoding.fit import Fitted, check, fit, says
from server.decoding.loop import PREFILL_TOKENS, Decoder, Emission
from server.decoding.merging import Merger
from server.decoding.offline import Completed, generate_offline
from server.decoding.pace import affordable_prefill
from server.decoding.room import affordable_prefixes, affordable_tokens, bytes_per_token
from server.decoding.rows import DecodeRequest
from server.decoding.sampler import uniform
from server.decoding.scores import Scoring, score
from server.decoding.trunk import StockTrunk, Trunk
from server.engine.base import FinishReason, Sampling

__all__ = [
    "PREFILL_TOKENS",
    "AdapterBank",
    "Completed",
    "DecodeRequest",
    "Decoder",
    "Emission",
    "FinishReason",
    "Fitted",
    "Merger",
    "Prepared",
    "Sampling",
    "Scoring",
    "StockTrunk",
    "Trunk",
    "affordable_prefill",
    "affordable_prefixes",
    "affordable_tokens",
    "bytes_per_token",
    "check",
    "fit",
    "generate_offline",
    "says",
    "score",
    "uniform",
]
