"""A plotly figure whose points can be clicked: `plot.select(handler)` reads the run from `evt.run`."""

from pathlib import Path

import gradio as gr
import plotly

# The wheel carries the library, so nothing is fetched from outside.
_LIBRARY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

_SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
_FRAME = '<div class="plot-frame"><div class="plot" role="img" aria-label="${label}"></div></div>'


def plot(elem_id: str, label: str) -> gr.HTML:
    """An empty plot; its value is a figure as JSON, and `gr.update(selected=RUN_ID)` rings a point."""
    gr.set_static_paths([_LIBRARY])
    return gr.HTML(
        value=None,
        html_template=_FRAME,
        label=label,
        js_on_load=_SCRIPT,
        # Relative, so that it also works behind a proxy that serves the app below a path.
        head=f'<script src="gradio_api/file={_LIBRARY.as_posix()}"></script>',
        elem_id=elem_id,
        elem_classes="plain",
        selected="",
    )
