"""Pages about this API for people: `/docs` to try it, `/redoc` to read,
and the OpenAPI document behind both.

They load everything from this server. Nothing from elsewhere may run in a page into which somebody
types a key, and many clusters reach nothing else.
"""

from importlib import resources
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

router = APIRouter(include_in_schema=False)

DOCUMENT = "/openapi.json"
ASSETS = "/docs/assets"
SCRIPT = "swagger-ui-bundle.js"
STYLE = "swagger-ui.css"
READER = "redoc.standalone.js"
ICON = "favicon.png"
FOLDER = Path(str(resources.files("fastapi_offline"))) / "static"
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:;"
    " frame-ancestors 'none'"
)
"""What browsers let the pages load. Both scripts write styles of their own."""


@router.get(DOCUMENT)
async def document(request: Request) -> Response:
    """The API, for programs."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def docs(request: Request) -> Response:
    """A page to try the API with."""
    assets = _root(request) + ASSETS
    page = get_swagger_ui_html(
        openapi_url=_root(request) + DOCUMENT,
        title=request.app.title,
        swagger_js_url=f"{assets}/{SCRIPT}",
        swagger_css_url=f"{assets}/{STYLE}",
        swagger_favicon_url=f"{assets}/{ICON}",
        swagger_ui_parameters={"validatorUrl": None},  # A badge from a server of its makers.
    )
    return _bound(page)


@router.get("/redoc")
async def redoc(request: Request) -> Response:
    """A page to read."""
    assets = _root(request) + ASSETS
    page = get_redoc_html(
        openapi_url=_root(request) + DOCUMENT,
        title=request.app.title,
        redoc_js_url=f"{assets}/{READER}",
        redoc_favicon_url=f"{assets}/{ICON}",
        with_google_fonts=False,
    )
    return _bound(page)


@router.get(ASSETS + "/{name}")
async def asset(name: str) -> Response:
    """A file of the pages."""
    if name not in (SCRIPT, STYLE, READER, ICON):
        raise HTTPException(404)
    return FileResponse(FOLDER / name, headers={"Cache-Control": "max-age=86400"})


def _root(request: Request) -> str:
    """Where a proxy shows this server."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _bound(page: Response) -> Response:
    page.headers["Content-Security-Policy"] = CONTENT_POLICY
    return page
