"""A hub on this host: as much of its API as asks for a repository's commit and files."""
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1.0", COMMIT)
Repositories = dict[str, dict[str, bytes]]  # "datasets/owner/name" or "models/owner/name" -> files


@contextmanager
def serving(repositories: Repositories) -> Iterator[str]:
    """Its address, for HF_ENDPOINT."""
    class Handler(_Handler):
        known = repositories

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    known: Repositories

    def log_message(self, *_):
        pass

    def answer(self, code=200, body=b"", **headers):
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):  # noqa: N802 - the name that http.server calls
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlparse(self.path).path).replace("/api", "").lstrip("/")
        path = path if path.startswith(("datasets/", "models/")) else f"models/{path}"
        repository = next((name for name in self.known if f"{path}/".startswith(f"{name}/")), None)
        if repository is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        files = self.known[repository]
        action, _, rest = path[len(repository) + 1 :].partition("/")

        def entries(names):
            return [{"type": "file", "path": name, "size": len(files[name]), "oid": _hash(files[name])}
                    for name in names if name in files]

        if action == "resolve":
            name = rest.partition("/")[2]
            if name not in files:
                return self.answer(404, X_Error_Code="EntryNotFound")
            return self.answer(body=files[name], ETag=f'"{_hash(files[name])}"', X_Repo_Commit=COMMIT)
        if action == "tree":
            found = entries(files)
        elif action == "paths-info":
            found = entries(json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"])
        elif (rest or "main") not in REVISIONS:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        else:
            found = {"_id": "1", "id": repository.partition("/")[2], "sha": COMMIT, "private": False, "downloads": 0,
                     "likes": 0, "tags": [], "siblings": [{"rfilename": name} for name in files]}
        return self.answer(body=json.dumps(found).encode(), Content_Type="application/json")

    do_HEAD = do_POST = do_GET  # noqa: N815


def _hash(content):
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
