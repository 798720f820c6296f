"""A plotly figure whose points can be clicked: `plot.select(handler)` reads the run from `evt.run`."""

from pathlib import Path

import gradio as gr
import plotly

# The wheel carries the library, so nothing is fetched from outside.
LIBRARY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
# How a figure is drawn: here, and in a story that stands on its own.
DRAWING = (Path(__file__).parent / "figure.js").read_text(encoding="utf-8")
_SCRIPT = DRAWING + Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
_FRAME = '<div class="plot-frame"><div class="plot" role="figure" aria-label="${label}"></div></div>'


def plot(elem_id: str, label: str, script: str = "") -> gr.HTML:
    """An empty plot; its value is a figure as JSON, and `gr.update(selected=RUN_ID)` rings a point.

    `script` is run with it, such as one that fetches its value.
    """
    return gr.HTML(
        value=None,
        html_template=_FRAME,
        label=label,
        js_on_load=_SCRIPT + script,
        head=library(),
        elem_id=elem_id,
        elem_classes="plain",
        selected="",
    )


def library() -> str:
    """What loads the plot library into a page."""
    gr.set_static_paths([LIBRARY])
    # Relative, so that it also works behind a proxy that serves the app below a path.
    return f'<script src="gradio_api/file={LIBRARY.as_posix()}"></script>'
