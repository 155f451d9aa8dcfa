"""`python -m moaa_ray` is the command `moaa`."""

from moaa_ray.cli import main

main()
