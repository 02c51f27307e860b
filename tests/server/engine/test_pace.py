"""When to come back is told by the replies that ended last."""

from server.engine.pace import Pace


def test_the_time_until_a_place_follows_the_rate_of_replies() -> None:
    now = [0.0]
    pace = Pace(clock=lambda: now[0])
    assert pace.seconds_until(3) == 1
    for _ in range(10):
        now[0] += 2
        pace.reply_ended()
    assert [pace.seconds_until(n) for n in (1, 3)] == [2, 6]
    now[0] += 0.1
    assert pace.seconds_until(1000) == 60
