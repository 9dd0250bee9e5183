"""One run of a domain's derive job, as a process: ``python -m tests.orchestration.deriving DOMAIN TAGS``.

The run queue's part is the test's: it starts what the sensor asks for.
"""

from __future__ import annotations

import json
import os
import sys

import dagster as dg

from mesh_assets.orchestration.derive import job_name
from mesh_assets.orchestration.location import location


def main() -> int:
    """Run it on the instance of ``DAGSTER_HOME``; 0 if it succeeds."""
    domain, tags = sys.argv[1], json.loads(sys.argv[2])
    job = location(domain).resolve_job_def(job_name(domain))
    with dg.DagsterInstance.get() as instance:
        return 0 if job.execute_in_process(instance=instance, tags=tags).success else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A process that has written Delta may abort in its exit handlers.
    os._exit(code)
