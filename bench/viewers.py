"""Many viewers of Explore on one server: python bench/viewers.py ADDRESS [VIEWERS SECONDS].

Each opens the page, then does every few seconds what the page does: it looks, fetches plot and table
where results have changed, and sends the page's event where there is more to choose from. Prints how many
requests were sent, how many failed, and how long answers took. Time a run beside it to see what viewers cost.
"""

import gzip
import json
import statistics
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

TICK_SECONDS = 5.0
# As the plot and the table of the page do after they fetched something.
REST_SECONDS = 12.0


class Viewer(threading.Thread):
    """One browser on Explore."""

    def __init__(self, address: str, event: dict[str, Any], until: float, delay: float) -> None:
        super().__init__(daemon=True)
        self.address, self.event, self.until, self.delay = address, event, until, delay
        self.known: dict[str, str] = {}
        self.results, self.choices, self.events, self.rests = -1, "", 0, 0.0
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
                self._look(session)
            except (OSError, ValueError) as problem:
                self.failures.append(str(problem))
            self.seconds.append(time.monotonic() - began)
            time.sleep(max(0.0, TICK_SECONDS - self.seconds[-1]))

    def _look(self, session: str) -> None:
        told = self._live("activity")
        if told is None:
            return
        results, choices = told["versions"]["results"], told["versions"]["choices"]
        if results != self.results and time.monotonic() > self.rests:
            self.results, self.rests = results, time.monotonic() + REST_SECONDS
            for panel in ("picture", "listing"):
                self._live(panel)
        if choices != self.choices:
            self.choices = choices
            self.events += 1
            self._ask(session)

    def _live(self, panel: str) -> dict[str, Any] | None:
        """What a shared panel tells, or None where that is known."""
        headers = {"If-None-Match": self.known.get(panel, ""), "Accept-Encoding": "gzip"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{self.address}/live/{panel}", headers=headers), timeout=60
            ) as told:
                self.known[panel], body = told.headers["ETag"], told.read()
                packed = told.headers["Content-Encoding"] == "gzip"
        except urllib.error.HTTPError as answer:
            if answer.code != 304:
                raise
            return None
        found: dict[str, Any] = json.loads(gzip.decompress(body) if packed else body)
        return found

    def _ask(self, session: str) -> None:
        body = json.dumps({**self.event, "session_hash": session, "trigger_id": None, "event_data": None})
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


def event_of(address: str) -> dict[str, Any]:
    """The event that Explore sends when a point has changed, with its inputs as a fresh page holds them."""
    with urllib.request.urlopen(f"{address}/config", timeout=60) as told:
        config = json.load(told)
    strip = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "activity")
    found = next(
        event
        for event in config["dependencies"]
        if any(target == [strip, "select"] for target in event["targets"])
    )
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    return {"fn_index": found["id"], "data": [values[part] for part in found["inputs"]]}


def main() -> None:
    """Look, and say how it went."""
    address, *asked = sys.argv[1:]
    count, seconds = map(int, [*asked, "50", "60"][:2])
    address = address.rstrip("/")
    event = event_of(address)
    until = time.monotonic() + seconds
    viewers = [Viewer(address, event, until, TICK_SECONDS * n / count) for n in range(count)]
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
                "events": sum(viewer.events for viewer in viewers),
                "failed": len(failed),
                "first failure": failed[0] if failed else None,
                "median seconds": round(statistics.median(taken), 3),
                "slowest 1 %": round(taken[int(0.99 * len(taken))], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
