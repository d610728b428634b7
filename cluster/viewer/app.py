"""The addresses of the viewer, each a page that is made when it is asked for. Nothing can be written through them.

A request is answered only where it names this machine as its host, so that a page from elsewhere cannot read along
through a name of its own (DNS rebinding); and no page may load, run or be framed by anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Final

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog.records import IterationRecord, Record, evals, iterations
from milepost.cluster.trajectories.recording import EVALUATION
from milepost.cluster.viewer.contents import episode_shown, group_shown
from milepost.cluster.viewer.curves import charts, number
from milepost.cluster.viewer.filters import ORDERS, Filters
from milepost.cluster.viewer.links import Served, View
from milepost.cluster.viewer.pages import page, style
from milepost.cluster.viewer.recorded import NOT_THERE, Row
from milepost.cluster.viewer.sources import Source, Sources

HOSTS: Final = ("127.0.0.1", "localhost")
_PAGE_SIZE: Final = 50
_Number = Annotated[int, Path(ge=0, lt=2**63)]
_COMPARED: Final = 3
"""Runs whose curves are shown where none is chosen."""
_LINKS: Final = Served()
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NUMBERS: Final = (
    ("success", "success"),
    ("reward", "reward_mean"),
    ("std in groups", "reward_std_within"),
    ("groups of equal returns", "zero_variance_share"),
    ("groups trained on", "groups_trained"),
    ("filtered", "groups_filtered"),
    ("too stale", "groups_stale"),
    ("failed episodes", "episodes_failed"),
    ("entropy", "entropy"),
    ("gradient norm", "grad_norm"),
    ("staleness", "staleness_mean"),
    ("parity", "parity"),
)


@dataclass(frozen=True, slots=True)
class _Listed:
    """A run in the list of runs."""

    key: str
    state: str
    iterations: int
    episodes: int
    held_out: str
    tone: int | None
    """Its colour; None where its curves are not shown."""


@dataclass(frozen=True, slots=True)
class _GroupListed:
    rows: list[Row]
    spread: float
    """Standard deviation of the returns of those that came to an end."""


def make_app(sources: Sources) -> FastAPI:
    """The server's application on some runs."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, default_response_class=HTMLResponse)

    _guard(app)

    @app.get("/style.css")
    def sheet() -> Response:
        return Response(style(), media_type="text/css")

    @app.get("/")
    def index(run: Annotated[list[str], Query()] = []) -> str:  # noqa: B006  fastapi copies it
        return _index(sources, run)

    @app.get("/run/{key}")
    def one(key: str, filters: Annotated[Filters, Query()]) -> str:
        return _run(sources, sources.get(key), filters)

    @app.get("/run/{key}/iteration/{iteration}")
    def update(key: str, iteration: _Number) -> str:
        return _iteration(sources.run(key), iteration)

    @app.get("/run/{key}/group/{group_id:path}")
    def group(key: str, group_id: str, view: Annotated[View, Query()]) -> str:
        source = sources.get(key)
        shown = group_shown(source, source.recorded.group(group_id), view.strategy)
        return page("group.html", source=source, group=shown, view=view, links=_LINKS)

    @app.get("/run/{key}/episode/{episode}")
    def episode(key: str, episode: _Number, view: Annotated[View, Query()]) -> str:
        source = sources.get(key)
        shown = episode_shown(source, episode, view)
        is_evaluation = shown.row["group_id"] == EVALUATION
        return page("episode.html", source=source, shown=shown, view=view, links=_LINKS, is_evaluation=is_evaluation)

    return app


def _guard(app: FastAPI) -> None:
    """Whom it answers, with which headers, and how it says what cannot be shown."""
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False)

    @app.middleware("http")
    async def with_headers(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = await go_on(request)
        answer.headers.update(_HEADERS)
        return answer

    @app.exception_handler(ConfigError)
    def refused(_: Request, error: ConfigError) -> Response:
        return _error(404, "This cannot be shown", str(error).splitlines())

    @app.exception_handler(RequestValidationError)
    def misasked(_: Request, error: RequestValidationError) -> Response:
        lines = [f"{'.'.join(str(part) for part in each['loc'][1:])}: {each['msg']}" for each in error.errors()]
        return _error(400, "The address asks for what there is not", lines)

    @app.exception_handler(HTTPException)
    def missing(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, "No such page", [error.detail])


def _error(status: int, title: str, lines: list[str]) -> Response:
    return HTMLResponse(page("error.html", title=title, lines=lines), status_code=status)


def _index(sources: Sources, wanted: list[str]) -> str:
    there = sources.all()
    chosen = [sources.run(key) for key in wanted] or (there if sources.is_chosen else there[:_COMPARED])
    tones = {source.key: tone for tone, source in enumerate(chosen)}
    records = {}
    listed = []
    for source in there:
        try:
            state, mine = source.state, source.records()
        except ConfigError as error:  # one run's damage hides no other
            state, mine = str(error), []
        listed.append(_listed(source.key, state, mine, tones.get(source.key)))
        records[source.key] = mine
    return page("index.html", runs=listed, charts=charts({key: records[key] for key in tones}), links=_LINKS)


def _listed(key: str, state: str, records: list[Record], tone: int | None) -> _Listed:
    done, held_out = iterations(records), evals(records, "heldout")
    return _Listed(
        key=key,
        state=state,
        iterations=done[-1].iteration if done else 0,
        episodes=sum(record.episodes for record in done),
        held_out=f"{held_out[0].success:.1%} → {held_out[-1].success:.1%}" if len(held_out) > 1 else "",
        tone=tone,
    )


def _run(sources: Sources, source: Source, filters: Filters) -> str:
    scores, recorded = source.scores(), source.recorded
    found = None if recorded.is_empty else recorded.listed(filters, scores, size=_PAGE_SIZE)
    is_run = source.results is None

    def turned(by: int) -> dict[str, Any]:
        return filters.asked | {"page": filters.page + by}

    return page(
        "run.html",
        source=source,
        suites=sources.suites(source) if is_run else [],
        charts=charts({source.key: source.records()}) if is_run else [],
        filters=filters,
        found=found,
        nothing=f"The run {NOT_THERE}.",
        choices=None if found is None else recorded.choices(),
        pages=0 if found is None else -(-found.total // _PAGE_SIZE),
        turned=turned,
        scores=scores,
        score_names=sorted({name for found in scores.values() for name in found}),
        orders=ORDERS,
        view=View(),
        links=_LINKS,
    )


def _iteration(source: Source, wanted: int) -> str:
    done = {record.iteration: record for record in iterations(source.records())}
    if wanted not in done:
        raise ConfigError(f"run {source.key} has no iteration {wanted}; it has {len(done)}")
    record = done[wanted]
    rows = [] if source.recorded.is_empty else source.recorded.judged(record.policy_version - 1)
    groups = [_grouped(list(members)) for _, members in groupby(rows, key=lambda row: row["group_id"])]
    return page(
        "iteration.html",
        source=source,
        record=record,
        groups=sorted(groups, key=lambda group: -group.spread),
        numbers=list(_numbers(record)),
        before=wanted - 1 if wanted - 1 in done else None,
        after=wanted + 1 if wanted + 1 in done else None,
        nothing="None of its episodes is recorded: not yet, or not any more, or the disk did not take them.",
        view=View(),
        links=_LINKS,
    )


def _grouped(rows: list[Row]) -> _GroupListed:
    returns = [row["reward"] for row in rows if row["outcome"] is not None]
    return _GroupListed(rows, statistics.pstdev(returns) if returns else 0.0)


def _numbers(record: IterationRecord) -> list[tuple[str, str]]:
    values = [(label, getattr(record, field)) for label, field in _NUMBERS]
    return [(label, number(value)) for label, value in values if value is not None]
