"""Who is asking: handlers that change something check it, since a hidden endpoint still answers HTTP."""

import gradio as gr

from backend.errors import UserError
from backend.host import Host
from ui.texts import say


def user_of(request: gr.Request, host: Host) -> str:
    """Who asks; UserError where a log-in is required and there is none."""
    user = getattr(request, "username", None)
    if host.auth and not user:
        raise UserError(say("app.not_logged_in"))
    return user or "anonymous"
