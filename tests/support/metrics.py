"""What a server's metrics say, and waiting until they say it."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families
from support.server import ServerProcess

SECONDS = 60.0


def scrape(server: ServerProcess) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """By name and labels."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=SECONDS) as answer:
        text = answer.read().decode()
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def total(metrics: dict[str, dict[frozenset[tuple[str, str]], float]], name: str, **labels: str) -> float:
    return sum(value for key, value in metrics.get(name, {}).items() if key >= labels.items())


def wait_for(server: ServerProcess, name: str, least: float, **labels: str) -> None:
    """Until a metric is there; the test's own time limit ends what never is."""
    while total(scrape(server), name, **labels) < least:
        pass


def wait_until_taken(server: ServerProcess, model: str, requests: int) -> None:
    """Until as many requests to a model wait or have been answered: those in flight have come before what is sent now.

    A call that was begun earlier on the same connection may still be sent later: HTTP/2 shares it between them.
    """
    while (
        total(metrics := scrape(server), "inferd_pending_requests", model=model)
        + total(metrics, "inferd_requests_succeeded_total", model=model)
        < requests
    ):
        pass
