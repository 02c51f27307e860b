"""Planted versions look like the learner's own to whoever loads them."""

from pathlib import Path

from learner.probe import CANARIES
from server.probe import Probe
from server.settings import Settings
from server.store import migrate
from tests.fakes import save_model
from tests.planting import plant


def test_a_planted_probe_holds_as_much_as_the_learners(tmp_path: Path) -> None:
    """With fewer items a swap under load would be measured with less scoring in it than a real one has."""

    model, data = save_model(tmp_path / "model"), tmp_path / "data"
    data.mkdir()
    migrate.upgrade(Settings(data_dir=data).resolved_database_url)
    assert plant(data, count=1, model=str(model)) == [1]
    probe = Probe.read(data / "adapters" / "default" / "v000001")
    assert len(probe.items) == len(CANARIES) == 8
    assert all(item.response_ids for item in probe.items)
