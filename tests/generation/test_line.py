"""What the line asks of Ray Data that a run's rows do not show."""

from moaa_ray.generation.line import _grow_at, _through
from moaa_ray.generation.pool import Pool


class Asked:
    """A dataset that keeps what it is asked."""

    def map_batches_internal(self, *_, **options):
        return options


def pool(blocks_in_flight: int, *, max_replicas: int = 2) -> Pool:
    return Pool(
        work=None,  # type: ignore[arg-type]
        min_replicas=1,
        max_replicas=max_replicas,
        num_cpus=1.0,
        num_gpus=0,
        spans_nodes=False,
        blocks_in_flight=blocks_in_flight,
        setup={},
        node_labels={},
    )


def test_calls_that_wait_for_a_credit_leave_room_for_blocks_that_were_lost_with_a_node():
    compute = _through(Asked(), pool(3), (), dict)["compute"]
    assert compute.max_concurrent_calls_per_actor > compute.max_tasks_in_flight_per_actor >= 3


def test_a_pool_grows_when_its_workers_have_all_the_tasks_that_they_are_given():
    """5 tasks of 9 calls with 3 blocks in flight, 4 of 8 with 2; a pool of a fixed size does not count."""
    compute = _through(Asked(), pool(3), (), dict)["compute"]
    assert _grow_at([pool(3)]) == compute.max_tasks_in_flight_per_actor / compute.max_concurrent_calls_per_actor
    assert _grow_at([pool(3), pool(2), pool(1, max_replicas=1)]) == 4 / 8
    assert _grow_at([pool(3, max_replicas=1)]) == 1.0
