"""Access to a review: only its own page, for the person who started it.

Any web page that is open in the same browser can send requests to 127.0.0.1, and through a host
name that it points there (DNS rebinding) it could read the answers. Other users of the machine can
connect too. So each request must name this server as its host and carry a token that is random for
each start, and a request that changes something must come from a page of this server.
"""

import secrets

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-patchcluster"  # cross-origin pages cannot add it without a preflight request
_READING = ("GET", "HEAD")
_POLICY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Middleware that refuses requests (403) and adds security headers to every response.

    The token is in the address of the first page (`/?token=...`), whose response sets a cookie.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app = app
        self._token = token
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self._cookie = f"patchcluster-{port}"  # browsers share cookies between ports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        named = scope["path"] == "/" and self._is_token(
            QueryParams(scope["query_string"]).get("token", "")
        )

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer.update(_POLICY)
                if named and message["status"] == 200:
                    cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
                    answer.append("set-cookie", cookie)
            await send(message)

        refused = self._refuse(scope["method"], headers, named)
        app = PlainTextResponse(f"{refused}\n", 403) if refused else self._app
        await app(scope, receive, send_with_headers)

    def _refuse(self, method: str, headers: Headers, named: bool) -> str:
        """Return why a request is refused; "": it is not."""
        # Starlette's TrustedHostMiddleware checks neither the port nor a second host header.
        if headers.getlist("host") not in [[host] for host in self._hosts]:
            return "wrong host: open the address that `patchcluster review` printed"
        if not named and not self._is_token(
            cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        ):
            return "no token: open the address that `patchcluster review` printed"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin != f"http://{headers['host']}":
            return "requested by a page of another origin"
        # A person may follow a link to the first page; all other requests are made by pages.
        if site not in (None, "same-origin", "none") and not named:
            return "requested by a page of another site"
        if method not in _READING:
            if origin is None and site != "same-origin":
                return "a change must come from a page of this server"
            if headers.get(HEADER) != "review":
                return f"a change needs the header {HEADER}: review"
        return ""

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "replace"), self._token.encode())
