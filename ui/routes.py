"""Addresses of our own beside Gradio's pages."""

from collections.abc import Awaitable, Callable

import gradio as gr
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import Route


def add_route(demo: gr.Blocks, path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
    """Answer GET requests of a launched application at `path`, for those who may see its pages."""
    routes = demo.app.router.routes
    if demo.app.auth is None:
        # Gradio's check would let everybody in, at the price of a thread for each request.
        made: Route = Route(path, endpoint)
    else:
        pages = next(route for route in routes if isinstance(route, APIRoute) and route.path == "/config")
        assert pages.dependencies
        made = APIRoute(path, endpoint, dependencies=pages.dependencies)
    # Before Gradio's own, the last of which takes every address.
    routes.insert(0, made)
