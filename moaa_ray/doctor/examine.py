"""`moaa doctor`: a look at the cluster that a recipe names."""

from moaa_ray.doctor.asking import ask_all
from moaa_ray.doctor.findings import Finding, findings
from moaa_ray.generation.session import session
from moaa_ray.recipe import RayConfig


def examine(config: RayConfig, *, run_dir: str = "", wants_gpus: bool = False) -> list[Finding]:
    """What is right and wrong with the cluster that `config` names. Raises ConfigError where none answers."""
    with session(config, cpu_slots=1):
        driver, nodes = ask_all(run_dir)
    return findings(driver, nodes, run_dir=run_dir, wants_gpus=wants_gpus)
