"""An application that commits at a steady rate and remembers when each commit returned.

Each lane is a connection with a range of order numbers of its own; within a lane they grow. A
transaction places an order and changes the lane's previous one.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg

from benchmarks.child import Report, asked_to_end, serve

LANE_WIDTH = 1_000_000_000

_PLACE = """
WITH changed AS (
    UPDATE shop.orders SET status = 'paid', updated_at = clock_timestamp() WHERE order_id = %s - 1
)
INSERT INTO shop.orders VALUES (%s, %s, 'new', 'EUR', 12.34, NULL, clock_timestamp())
"""


def work(parameters: dict[str, Any], report: Report) -> dict[str, Any]:
    """Commit ``per_second`` transactions a second for ``seconds``; returns each lane's commit times."""
    lane_count = int(parameters["lane_count"])
    interval = lane_count / parameters["per_second"]
    end = time.monotonic() + parameters["seconds"]
    lanes: list[list[float]] = [[] for _ in range(lane_count)]
    failures: list[Exception] = []

    def drive(lane: int) -> None:
        times = lanes[lane]
        key = (lane + 1) * LANE_WIDTH
        # Lanes begin evenly spread over one interval.
        due = time.monotonic() + interval * lane / lane_count
        try:
            with psycopg.connect(parameters["url"], autocommit=True) as connection:
                while due < end and not asked_to_end.is_set():
                    if (wait := due - time.monotonic()) > 0:
                        time.sleep(wait)
                    connection.execute(_PLACE, (key, key, lane), prepare=True)
                    times.append(time.monotonic())
                    key += 1
                    due += interval
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(lane,)) for lane in range(lane_count)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.2)
        report(progress=sum(map(len, lanes)))
    if failures:
        raise failures[0]
    return {"lanes": lanes}


if __name__ == "__main__":
    serve(work)
