"""Stops the jobs of a Ray head and waits until they have ended: what Kubernetes runs before it ends the head's pod.

KubeRay deletes that pod right after it asked a job to stop, where the RayJob is deleted, and without asking where it is
suspended or tried again. It runs on the head, whose environment holds Ray's token.
"""

from __future__ import annotations

import sys
import time
from typing import Final

from ray.job_submission import JobSubmissionClient

DASHBOARD: Final = "http://127.0.0.1:8265"


def stop_jobs(dashboard: str, patience_s: float) -> list[str]:
    """Ask every job that runs to stop, and wait up to `patience_s`. Returns the ids of those that then still run."""
    client = JobSubmissionClient(dashboard)
    ids = [job.submission_id for job in client.list_jobs() if job.submission_id is not None]
    running = [name for name in ids if not client.get_job_status(name).is_terminal()]
    for name in running:
        client.stop_job(name)
    deadline = time.monotonic() + patience_s
    while running and time.monotonic() < deadline:
        time.sleep(0.5)
        running = [name for name in running if not client.get_job_status(name).is_terminal()]
    return running


if __name__ == "__main__":
    if left := stop_jobs(DASHBOARD, float(sys.argv[1])):
        sys.exit(f"stop_jobs: {', '.join(left)} still ran after {sys.argv[1]} s")
