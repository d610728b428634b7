"""Where spans of episodes go, and what is in them. It holds no secret: OTEL_EXPORTER_OTLP_HEADERS does."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator


class TracingConfig(BaseModel):
    """Spans of episodes, by choice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str = Field(
        "", description="Base URL of a collector that takes OTLP over HTTP, e.g. http://127.0.0.1:4318; empty: no spans"
    )
    sample: float = Field(1.0, gt=0, le=1, description="Share of the episodes that are traced")
    text_chars: int = Field(
        0, ge=0, le=10_000, description="Characters of each prompt, response and argument in a span; 0: no texts"
    )
    service: str = Field(
        "milepost", min_length=1, description="Service name of the spans, and their project in Phoenix"
    )

    @field_validator("endpoint")
    @classmethod
    def _is_a_base_url(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{value!r} is no http:// or https:// URL")
        if parts.username is not None:
            raise ValueError("a URL with a password does not belong into a file; set OTEL_EXPORTER_OTLP_HEADERS")
        if parts.path.rstrip("/").endswith("/v1/traces"):
            raise ValueError("give the base URL: /v1/traces is put behind it")
        return value.rstrip("/")
