#!/usr/bin/env python3
"""A proxy before apt's archives that has lost some files: mirror.py WORD answers 404 to addresses with that word."""
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802 - the name that the library calls
        if sys.argv[1] in self.path:
            self.send_error(404)
            return
        try:
            with urllib.request.urlopen(urllib.request.Request(self.path, method=self.command), timeout=60) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            self.send_error(error.code)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815


ThreadingHTTPServer(("127.0.0.1", 8404), Mirror).serve_forever()
