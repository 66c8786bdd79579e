"""`/docs`: Swagger UI for the OpenAPI document, from files of an installed package and no other host."""

import hashlib
import re
from base64 import b64encode
from typing import Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

FILES: Final = "/docs/files"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> Response:
    """Returns the page. Its policy allows the one script that it contains."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Smalti: HTTP API",
        swagger_js_url=f"{FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{FILES}/swagger-ui.css",
        swagger_favicon_url=f"{FILES}/favicon-32x32.png",
    )
    html = bytes(page.body).decode()
    hashes = " ".join(
        f"'sha256-{_sha256(script)}'" for script in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    )
    policy = (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; frame-ancestors 'none'"
    )
    return HTMLResponse(html, headers={"content-security-policy": policy})


def mount(app: FastAPI) -> None:
    """Serves the files of Swagger UI."""
    app.mount(FILES, StaticFiles(packages=[("fastapi_swagger", "resources")]))


def _sha256(script: str) -> str:
    return b64encode(hashlib.sha256(script.encode()).digest()).decode()
