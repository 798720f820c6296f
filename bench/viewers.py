"""Many viewers of Explore on one server: python bench/viewers.py ADDRESS [VIEWERS SECONDS].

Each opens the page, then sends what the page's timer sends every few seconds, and reads the answer to its
end. Prints how many requests were sent, how many failed, and how long answers took. Time a run beside it to
see what viewers cost.
"""

import json
import statistics
import sys
import threading
import time
import urllib.request
import uuid
from typing import Any

TICK_SECONDS = 3.0


class Viewer(threading.Thread):
    """One browser on Explore."""

    def __init__(self, address: str, tick: dict[str, Any], until: float, delay: float) -> None:
        super().__init__(daemon=True)
        self.address, self.tick, self.until, self.delay = address, tick, until, delay
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Look until it is time."""
        time.sleep(self.delay)
        session = uuid.uuid4().hex[:10]
        while time.monotonic() < self.until:
            began = time.monotonic()
            try:
                if not self.seconds:
                    with urllib.request.urlopen(f"{self.address}/", timeout=60) as page:
                        page.read()
                self._ask(session)
            except (OSError, ValueError) as problem:
                self.failures.append(str(problem))
            self.seconds.append(time.monotonic() - began)
            time.sleep(max(0.0, TICK_SECONDS - self.seconds[-1]))

    def _ask(self, session: str) -> None:
        body = json.dumps({**self.tick, "session_hash": session, "trigger_id": None, "event_data": None})
        asked = urllib.request.Request(
            f"{self.address}/gradio_api/queue/join", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as joined:
            joined.read()
        with urllib.request.urlopen(
            f"{self.address}/gradio_api/queue/data?session_hash={session}", timeout=60
        ) as told:
            for line in told:
                if b"process_completed" in line:
                    if b'"success":true' not in line.replace(b" ", b""):
                        raise ValueError(line.decode()[:300])
                    return
        raise ValueError("the answer ended too early")


def timer_of(address: str) -> dict[str, Any]:
    """The event that Explore's timer sends, with its inputs as a fresh page holds them."""
    with urllib.request.urlopen(f"{address}/config", timeout=60) as told:
        config = json.load(told)
    timers = {part["id"] for part in config["components"] if part["type"] == "timer"}
    found = next(
        event for event in config["dependencies"] if any(target[0] in timers for target in event["targets"])
    )
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    return {"fn_index": found["id"], "data": [values[part] for part in found["inputs"]]}


def main() -> None:
    """Look, and say how it went."""
    address, *asked = sys.argv[1:]
    count, seconds = map(int, [*asked, "50", "60"][:2])
    address = address.rstrip("/")
    tick = timer_of(address)
    until = time.monotonic() + seconds
    viewers = [Viewer(address, tick, until, TICK_SECONDS * n / count) for n in range(count)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    taken = sorted(second for viewer in viewers for second in viewer.seconds[1:])
    failed = [told for viewer in viewers for told in viewer.failures]
    print(
        json.dumps(
            {
                "viewers": count,
                "requests": sum(len(viewer.seconds) for viewer in viewers),
                "failed": len(failed),
                "first failure": failed[0] if failed else None,
                "median seconds": round(statistics.median(taken), 3),
                "slowest 1 %": round(taken[int(0.99 * len(taken))], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
