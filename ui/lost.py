"""What stands at an address that is no page: our head and the ways home."""

from html import escape

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from ui.texts import LANGUAGE, say
from ui.theme import CSS, MARK

_PAGE = """<!doctype html>
<html lang="{language}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Paretoscope</title><link rel="icon" href="{mark}"><style>{css}</style></head>
<body class="sheet lost"><script>document.body.classList.toggle('dark',
matchMedia('(prefers-color-scheme: dark)').matches)</script>
{head}<main class="panel empty"><h1>{title}</h1><p>{why}</p>
<p><a class="act" href="{home}">{way}</a></p></main></body></html>
"""


def not_found(head: str) -> dict[int, object]:
    """The handler of a 404 for the web application: a page for people, JSON for programs."""

    async def answer(request: Request, problem: Exception) -> Response:
        told = getattr(problem, "detail", "Not Found")
        if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"detail": told}, status_code=404)
        home = request.scope.get("root_path", "").rstrip("/") + "/"
        path = escape(request.url.path[:200])
        body = _PAGE.format(
            mark=MARK,
            css=CSS,
            head=head.replace('href="./', f'href="{escape(home)}'),
            language=LANGUAGE,
            title=say("app.no_such_page"),
            why=say("app.nothing_there", path=path),
            way=say("common.explore"),
            home=escape(home),
        )
        return HTMLResponse(body, status_code=404)

    return {404: answer}
