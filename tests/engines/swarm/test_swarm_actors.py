"""Clients as Ray actors, on a real local cluster, some of them killed while they train."""

import io
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from test_swarm_train import CONFIG, Context, run

from assay.core.errors import ConfigError
from assay.engines.swarm.actors import ActorCrew, LocalSeats, Worker
from assay.engines.swarm.checkpoint import arrays_to_bytes
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
    crew = ActorCrew(config, LocalSeats(config, folder, 0.1, 1, "run"))
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
    seats = LocalSeats(config, tmp_path, 0.1, 1, "run")
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
    alive = [values for _, values in context.logged if values["sync/members"]]
    assert len(alive) >= 12
    assert {values["sync/replicas_equal"] for values in alive} == {1.0}
    assert context.logged[-1][0] == 14
    assert (
        context.final["test/loss_nats_tier0"]
        < run(replace(config, steps=1)).final["test/loss_nats_tier0"]
    )


def worker(folder, number=0, run_="run"):
    """A client in this process, as an actor runs it."""
    return Worker(CONFIG, number, str(folder), 1, run_)


def test_what_lies_on_the_disk_is_checked(tmp_path):
    """What is damaged is set aside, and told; what another client left, or holds no numbers, too."""
    theta = initial(CONFIG.shape, torch.Generator().manual_seed(0)).numpy()
    path, order = tmp_path / "client-000.npz", Order(1, torch.zeros(2, 17, dtype=torch.int64))
    path.write_bytes(b"PK\x03\x04 not an archive")
    assert "client 0" in worker(tmp_path).begin(theta, 9)
    assert not path.exists()
    assert (tmp_path / "client-000.damaged").read_bytes().startswith(b"PK")
    first = worker(tmp_path)
    assert first.begin(theta, 9) == ""
    first.train(order)
    whole = path.read_bytes()
    with np.load(io.BytesIO(whole)) as arrays:
        kept = dict(arrays)
    for name, wrong in (
        ("delta", kept["delta"][:5]),
        ("delta", np.full_like(kept["delta"], np.nan)),
        ("delta", np.ones(1, np.float32)),
        ("step", np.array([[]])),
    ):
        path.write_bytes(arrays_to_bytes(kept | {name: wrong}))
        assert "begins without" in worker(tmp_path).begin(theta, 9)
    narrow = first.part(1)
    (tmp_path / "client-001.npz").write_bytes(whole)
    assert "client 1" in worker(tmp_path, 1).begin(narrow, 9)


def test_only_this_runs_past_is_taken_up(tmp_path):
    """A file of another run, or of a round that a restarted run has not reached, is left alone."""
    theta = initial(CONFIG.shape, torch.Generator().manual_seed(0)).numpy()
    first = worker(tmp_path)
    first.begin(theta, 0)
    for step in (1, 2, 3):
        first.train(Order(step, torch.zeros(2, 17, dtype=torch.int64)))
    unsent = first.client.unsent()["delta"]
    assert np.abs(unsent).sum() > 0
    for run_, step, taken in (("run", 3, True), ("run", 2, False), ("other", 3, False)):
        again = worker(tmp_path, run_=run_)
        assert again.begin(theta, step) == ""
        assert np.array_equal(again.client.unsent()["delta"], unsent) is taken
    assert (tmp_path / "client-000.npz").is_file()


def test_a_peer_that_dies_before_it_can_give(tmp_path):
    """Joiners whose peer is gone are no reason to wait for ever: they fetch from another."""
    config = replace(CONFIG, tiers=(0, 0, 1, 1), steps=8, epoch_rounds=3)
    crew = ActorCrew(config, LocalSeats(config, tmp_path, 0.1, 1, "run"))

    def kill(session):
        if session.state.step == 3:  # the epoch is over: 0 gives to whom joins next
            crew.lose(3)
            os.kill(ray.get(crew.actors[0].pid.remote()), signal.SIGKILL)

    context = Context()
    train_one(config, context, crew, kill)
    assert context.logged[-1][0] == 8
    assert context.final["sync/replicas_equal"] == 1
    assert context.logged[-1][1]["sync/members"] == 4


def test_more_than_a_cluster_has():
    """Told before any training."""
    with pytest.raises(ConfigError, match="--cpus"):
        LocalSeats(CONFIG, None, 64.0, 1, "run")


def test_a_desk_gives_each_seat_once():
    """By tier; a wrong model, and one client too many, are refused."""
    desk = Desk(CONFIG, "run")
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
    seats = DeskSeats(
        ray.remote(Desk).options(num_cpus=0).remote(CONFIG, "run"), first=3, wait_s=0.5
    )
    context = Context()
    with pytest.raises(ConfigError, match="needs 3 clients"):
        train_one(CONFIG, context, ActorCrew(CONFIG, seats))
    assert context.logged == []
