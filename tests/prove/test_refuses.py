"""The record without its adversaries leaves out exactly those."""

from learner.simulation.drive import Crowd, plan
from tests.prove.refuses import SHARE, those_against


def test_the_users_whose_votes_are_taken_back_are_the_adversaries_of_that_crowd() -> None:
    for seed in range(3):
        visits = plan(Crowd("friendly-brief", users=24, adversaries=SHARE, seed=seed))
        against = {f"{visit.rater.user}-{seed}" for visit in visits if visit.rater.sign < 0}
        assert len(against) == 5
        assert set(those_against(24, seed)) == against
