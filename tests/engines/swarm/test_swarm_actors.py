"""Clients as Ray actors, on a real local cluster, some of them killed while they train."""

import os
import signal
from dataclasses import replace

import pytest
import ray
import torch
from test_swarm_train import CONFIG, Context, run

from assay.core.errors import CheckpointError, ConfigError
from assay.engines.swarm.actors import ActorCrew, LocalSeats, Worker
from assay.engines.swarm.client import Order
from assay.engines.swarm.desk import Desk, DeskSeats
from assay.engines.swarm.matformer import initial
from assay.engines.swarm.train import train_one

FAULTS = {"loss": 0.2, "latency_ms": (50.0, 150.0), "churn": 0.4, "epoch_rounds": 3}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray, with processes of its own, for as long as these tests run."""
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        namespace="test",
    )  # fmt: skip
    yield
    ray.shutdown()


def over_actors(config, folder, context=None, watch=None):
    """A run with actors."""
    context = context or Context()
    crew = ActorCrew(config, LocalSeats(config, folder, 0.1, 1))
    train_one(config, context, crew, watch)
    for number in list(crew.living()):
        crew.lose(number)
    return context


@pytest.mark.parametrize("faults", [{}, FAULTS], ids=["calm", "faults"])
def test_actors_do_what_a_process_does(tmp_path, faults):
    """Same numbers, bit for bit, with deaths and rejoining too: what is unsent comes from the disk."""
    config = replace(CONFIG, tiers=(0, 0, 1, 1), steps=8, **faults)
    torch.set_num_threads(1)
    alone, spread = run(config), over_actors(config, tmp_path)
    assert spread.final == alone.final
    assert spread.logged == alone.logged
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"client-{n:03d}.npz" for n in range(4)
    ]


def test_a_stopped_run_goes_on_with_new_actors(tmp_path):
    """The state of all clients is in the checkpoint."""
    torch.set_num_threads(1)
    whole, parted = run(CONFIG), Context()
    parted.stop_at = 3
    (tmp_path / "a").mkdir()
    over_actors(CONFIG, tmp_path / "a", parted)
    assert parted.final == {}
    parted.stop_at = None
    (tmp_path / "b").mkdir()
    over_actors(CONFIG, tmp_path / "b", parted)
    assert parted.final == whole.final
    assert parted.logged == whole.logged


@pytest.mark.parametrize("victims", [(1,), (0, 3), (0, 1, 2, 3)])
def test_actors_that_are_killed(tmp_path, victims):
    """SIGKILL of their processes while they train: the others go on, they come back, all agree."""
    config = replace(CONFIG, tiers=(0, 0, 1, 1), steps=14, epoch_rounds=4, eval_interval=2)
    seats = LocalSeats(config, tmp_path, 0.1, 1)
    crew = ActorCrew(config, seats)
    pids = {}

    def kill(session):
        if session.state.step in (3, 9):
            pids.update(
                {n: ray.get(crew.actors[n].pid.remote()) for n in victims if n in crew.actors}
            )
            for number in victims:
                os.kill(pids[number], signal.SIGKILL)

    context = Context()
    train_one(config, context, crew, kill)
    assert context.final["faults/kills"] == 2 * len(victims)
    assert context.final["faults/rejoins"] >= 2 * len(victims)
    assert context.final["sync/replicas_equal"] == 1
    equal = [v["sync/replicas_equal"] for _, v in context.logged if "sync/replicas_equal" in v]
    assert set(equal) == {1.0}
    assert context.logged[-1][0] == 14
    assert context.final["test/loss_nats_tier0"] < 5.6


def test_what_lies_on_the_disk_is_checked(tmp_path):
    """A file of another client, or a damaged one, is told; never unpickled."""
    theta = initial(CONFIG.shape, torch.Generator().manual_seed(0)).numpy()
    (tmp_path / "client-000.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(CheckpointError, match="client 0"):
        Worker(CONFIG, 0, str(tmp_path), 1).begin(theta)
    (tmp_path / "client-000.npz").unlink()
    worker = Worker(CONFIG, 0, str(tmp_path), 1)
    worker.begin(theta)
    worker.train(Order(1, torch.zeros(2, 17, dtype=torch.int64)))
    (tmp_path / "client-000.npz").rename(tmp_path / "client-001.npz")
    narrow = worker.part(1)
    with pytest.raises(CheckpointError, match="Remove it"):
        Worker(CONFIG, 1, str(tmp_path), 1).begin(narrow)


def test_a_desk_gives_each_seat_once():
    """By tier; a wrong model, and one client too many, are refused."""
    desk = Desk(CONFIG)
    schema = desk.about().schema
    assert [desk.take(None, schema), desk.take(1, schema), desk.take(1, schema)] == [0, 1, 2]
    with pytest.raises(ConfigError, match="free seat"):
        desk.take(None, schema)
    desk.sit(1, "actor")
    desk.free(1)
    assert desk.take(1, schema) == 1
    with pytest.raises(ConfigError, match="same version"):
        desk.take(0, "0" * 64)


def test_too_few_clients():
    """Nobody joins: an error before any training."""
    seats = DeskSeats(ray.remote(Desk).options(num_cpus=0).remote(CONFIG), first=3, wait_s=0.5)
    context = Context()
    with pytest.raises(ConfigError, match="needs 3 clients"):
        train_one(CONFIG, context, ActorCrew(CONFIG, seats))
    assert context.logged == []
