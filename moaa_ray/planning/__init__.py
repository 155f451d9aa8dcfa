"""What a run would do on a cluster: pools, replicas, phases, tokens, hours, cost."""
