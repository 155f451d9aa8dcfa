"""What the line asks of Ray Data that a run's rows do not show."""

from moaa_ray.generation.line import Pool, _through


class Asked:
    """A dataset that keeps what it is asked."""

    def map_batches(self, *_, **options):
        return options


def test_calls_that_wait_for_a_credit_leave_room_for_blocks_that_were_lost_with_a_node():
    pool = Pool(
        work=None,  # type: ignore[arg-type]
        min_replicas=1,
        max_replicas=2,
        num_cpus=1.0,
        num_gpus=0,
        spans_nodes=False,
        blocks_in_flight=3,
        setup={},
    )
    compute = _through(Asked(), pool, ())["compute"]
    assert compute.max_concurrent_calls_per_actor > compute.max_tasks_in_flight_per_actor >= pool.blocks_in_flight
