"""The key of an endpoint: read from the worker's environment, and kept out of every message."""

import os

from moaa_ray.engines.base import EngineStartError


class EndpointKey:
    """The key that a model's `api_key: ${NAME}` stands for; "" where it has none."""

    def __init__(self, reference: str | None):
        self._name = (reference or "")[2:-1]
        self._value = ""

    def read(self) -> str:
        """The key itself, for the header. Raises EngineStartError where the environment does not have it."""
        if not self._name:
            return ""
        key = os.environ.get(self._name, "").strip()
        if not key:
            raise EngineStartError(
                f"api_key is ${{{self._name}}}, and {self._name} is not set in this worker's environment; "
                "set it on every node, as a mounted secret rather than in runtime_env"
            )
        if not (key.isascii() and key.isprintable()):
            raise EngineStartError(
                f"the value of {self._name} cannot be sent in a header; it has other than printable ASCII"
            )
        self._value = key
        return key

    def advice(self) -> str:
        """What to do about an endpoint that refuses."""
        if not self._name:
            return "it wants a key; set api_key: ${NAME} and the variable NAME in the workers' environment"
        return f"it refuses the key in {self._name}; check the variable in the workers' environment"

    def clean(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self._value, "***") if self._value else text
