"""The `serve` section of a recipe: where the server listens, what it offers, and what it bears.

Nothing here imports Ray, torch or vLLM.
"""

import ipaddress
import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from moaa_ray.settings.base import Config

MIXTURE = "mixture"
"""The name of the mixture of agents among the served models."""
STUDENTS = ("student/base", "student/sft", "student/dpo")
"""Names of the student before training, and as the two training stages of the run left it."""


class ServeConfig(Config):
    """How `moaa serve` serves the models of a run. None of it changes what a stage makes."""

    host: str = "127.0.0.1"
    """The address to listen on; one that other machines reach needs api_keys or api_keys_file."""
    port: int = Field(default=8000, ge=1, le=65535)
    models: list[str] = Field(default_factory=list)
    """What is offered: mixture, student/base, student/sft, student/dpo, or names under `models`. Empty: the mixture,
    its models, and the tuned students that are in RUN/models."""
    api_keys: str | None = None
    """${NAME} of an environment variable with the keys that clients may show, separated by commas."""
    api_keys_file: str | None = None
    """A file with one such key per line (relative to the recipe's folder), for instance a mounted secret."""
    allow_origins: list[str] = Field(default_factory=list)
    """Pages of a browser that may ask, as https://chat.example.org or http://localhost:3000; "*" is every page that the
    browser shows, and needs keys. Empty: none, as browsers have it without a word from the server."""
    proposer_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds a layer of the mixture waits for its proposers; it goes on with those that have answered, if they are
    at least mixture.min_proposals."""
    quorum: int | None = Field(default=None, ge=1)
    """Proposals of a layer that are enough to go on at once, the slower proposers cancelled; at least
    mixture.min_proposals. Unset: wait for all."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds after which a request has failed, all of it together."""
    max_open_requests: int = Field(default=256, ge=1)
    """Requests that one ingress works on at a time; those above it are told to come again (429)."""
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Longest request."""
    max_messages: int = Field(default=1000, ge=1)
    """Most messages of a request."""
    max_tokens: int = Field(default=8192, ge=1)
    """Most completion tokens that a request may ask for."""
    ingresses: int = Field(default=1, ge=1)
    """Processes that take requests; each has max_open_requests of its own."""
    start_timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds that the models may take to load, all of them together."""

    @field_validator("api_keys")
    @classmethod
    def _only_a_reference(cls, keys: str | None) -> str | None:
        if keys is not None and not re.fullmatch(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}", keys):
            raise ValueError("a secret stands in the recipe; write ${NAME} and set NAME in the environment")
        return keys

    @field_validator("allow_origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s@]+", origin):
                raise ValueError(
                    f"{origin!r} is no origin: write http(s)://host or http(s)://host:port, without a path"
                )
        return origins

    @model_validator(mode="after")
    def _closed_to_others(self) -> Self:
        if self.api_keys and self.api_keys_file:
            raise ValueError("api_keys and api_keys_file are both set; keep the one that holds the keys")
        if not self.has_keys and not self.is_loopback:
            raise ValueError(
                f"host = {self.host!r} without api_keys: other machines could use the models as they like; set "
                "api_keys: ${NAME} or api_keys_file, or listen on 127.0.0.1"
            )
        if "*" in self.allow_origins and not self.has_keys:
            raise ValueError(
                "allow_origins = ['*'] without api_keys: every page that a browser on this machine opens could use the "
                "models; name the origins, or set api_keys: ${NAME} or api_keys_file"
            )
        return self

    @property
    def has_keys(self) -> bool:
        """Whether clients must show a key."""
        return bool(self.api_keys or self.api_keys_file)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the host."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
