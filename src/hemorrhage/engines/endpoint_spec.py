"""A server over HTTP as users name it; read with params.yaml, so nothing of numbers is imported here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.engines.endpoint_http import EndpointError, check_url


class EndpointSpec(BaseModel):
    """A server, as params.yaml names it.

    ``key_env``: the environment variable with its key. ``top``: log-probabilities at each position.
    ``max_tokens``: sent and generated, all requests together; ``max_seconds``: of one run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    openai: str
    model: Annotated[str, Field(min_length=1)]
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    dialect: Literal["auto", "prompt_logprobs", "echo", "sglang", "llama_cpp"] = "auto"
    top: Annotated[int, Field(ge=1)] = 20
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    timeout: Annotated[float, Field(gt=0)] = 120.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 6
    max_tokens: Annotated[int, Field(ge=1)] = 200_000
    max_seconds: Annotated[float, Field(gt=0)] = 3600.0

    def model_post_init(self, _context: object) -> None:
        """Refuse a URL that can't be called."""
        try:
            check_url(self.openai, self.key_env is not None)
        except EndpointError as error:
            raise ValueError(str(error)) from None
