"""Which runs can be told from the Pareto front: paired over the windows that all runs of a plot share.

d_i = value of the run - value of the front's run on window i,  told apart when mean d > t sd(d)/sqrt(n)

with t of Student's 95 % interval: 2.36 for 8 windows, 2.07 for 24
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from backend.solvers import student
from ui import charts
from ui.charts import Axis

FRONT, WITHIN, DOMINATED = "front", "within noise", "dominated"
Windows = Mapping[tuple[str, str], NDArray[np.float64]]


def series_name(metric: str) -> str:
    """The series that holds a metric's value on each window."""
    return f"{metric}.windows"


def standing(rows: pd.DataFrame, x: Axis, y: Axis, windows: Windows) -> list[str]:
    """For each row with numbers `_x` and `_y`: on the front, within noise of it, or dominated.

    A run is dominated when some run of the front costs no more and is better beyond the 95 % interval
    of their paired difference; without windows to pair, by any difference at all.
    """
    costs = rows["_x"].to_numpy() * (-1 if x.higher_is_better else 1)
    ahead = charts.front(costs.tolist(), rows["_y"].tolist(), y.higher_is_better)
    told = [WITHIN] * len(rows)
    keys = list(zip(rows["id"], rows["protocol"], strict=True))
    values = [windows.get(key) for key in keys]
    sign = -1.0 if y.higher_is_better else 1.0
    length = max((len(found) for found in values if found is not None), default=0)
    table = np.full((len(rows), length), np.nan)
    for at, found in enumerate(values):
        if found is not None and len(found) == length:
            table[at] = sign * found
    plain = sign * rows["_y"].to_numpy()
    beaten = np.zeros(len(rows), dtype=bool)
    for leader in ahead:
        # What is beaten already is not asked again: of thousands of runs few are left after a leader or two.
        asked = np.flatnonzero(~beaten & (costs >= costs[leader]))
        worse = plain[asked] > plain[leader]
        if length > 1:
            apart = table[asked] - table[leader]
            mean = apart.mean(axis=1)
            reach = student.reach(length) * apart.std(axis=1, ddof=1) / np.sqrt(length)
            worse = np.where(np.isnan(mean), worse, mean > reach)
        beaten[asked] = worse
    for at in np.flatnonzero(beaten):
        told[at] = DOMINATED
    for at in ahead:
        told[at] = FRONT
    return told
