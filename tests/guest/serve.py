"""Servers on the host for guests: a file by HTTP, and the sum of what is sent."""
import hashlib
import http.server
import socketserver
import threading


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 32


class Sum(socketserver.BaseRequestHandler):
    """Answers with the sum of what it was sent."""

    def handle(self):
        digest = hashlib.sha256()
        while data := self.request.recv(1 << 16):
            digest.update(data)
        self.request.sendall(("up %s\n" % digest.hexdigest()).encode())


class SumServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True


def start(address, data):
    """Serves `data` (any path) on one port, sums on another; the two ports, as the guest's keys."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    servers = {"http": Server((address, 0), Handler), "sum": SumServer((address, 0), Sum)}
    for server in servers.values():
        threading.Thread(target=server.serve_forever, daemon=True).start()
    return {key: server.server_address[1] for key, server in servers.items()}
