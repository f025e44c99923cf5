"""The download, from a local server that misbehaves as servers do."""

import hashlib
import http.server
import random
import socket
import threading

import pytest

import data
import download

ARCHIVE = random.Random(0).randbytes(300_000)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/riddle":
            self.send_response(302)
            self.send_header("Location", "http://[half an address/\x1b[2J")
            return self.end_headers()
        if self.path == "/silent":  # accepts the connection but never answers, until the client gives up
            return self.connection.recv(1)
        body = ARCHIVE
        if self.path == "/wrong":
            body = bytes(len(ARCHIVE))
        if self.path == "/page":
            body = b"<html>Sign in to the wireless network</html>"
        self.send_response(200)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            if self.path == "/truncated":
                self.wfile.write(body[:100_000])
            elif self.path == "/endless":
                while True:
                    self.wfile.write(body)
            elif self.path == "/slow":  # byte by byte, until the client gives up
                for byte in body:
                    self.wfile.write(bytes([byte]))
            else:
                self.wfile.write(body)
        except OSError:
            pass

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(download, "ARCHIVE_BYTES", len(ARCHIVE))
        monkeypatch.setattr(download, "ARCHIVE_MD5", hashlib.md5(ARCHIVE).hexdigest())
        monkeypatch.setattr(download, "TIMEOUT", 2)
        # Here, a mirror is slow if it sends single bytes, so that the tests don't depend on timing.
        monkeypatch.setattr(download, "SLOW_SECONDS", 0)
        monkeypatch.setattr(download, "SLOW_BYTES", 100)
        yield server
        server.shutdown()


def mirrors(server, monkeypatch, *paths):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/dead"
    addresses = [dead if path == "/dead" else f"http://127.0.0.1:{server.server_port}{path}" for path in paths]
    monkeypatch.setattr(download, "MIRRORS", addresses)
    return addresses


@pytest.mark.parametrize(
    "bad", ["/dead", "/missing", "/silent", "/slow", "/truncated", "/wrong", "/page", "/endless", "/riddle"]
)
def test_next_mirror_is_used_and_no_broken_file_is_left(server, monkeypatch, tmp_path, bad, capsys):
    addresses = mirrors(server, monkeypatch, bad, "/good", "/never")
    download.fetch_archive(tmp_path / "archive.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["archive.tar.gz"]
    assert (tmp_path / "archive.tar.gz").read_bytes() == ARCHIVE
    assert server.asked == [path for path in (bad, "/good") if path != "/dead"]
    out = capsys.readouterr().out
    assert addresses[0] in out and "100 %" in out


def test_last_mirror_may_be_slow(server, monkeypatch, tmp_path):
    mirrors(server, monkeypatch, "/slow")
    download.fetch_archive(tmp_path / "archive.tar.gz")
    assert (tmp_path / "archive.tar.gz").read_bytes() == ARCHIVE


def test_if_all_mirrors_fail_the_message_has_every_reason_and_the_alternatives(server, monkeypatch, tmp_path):
    addresses = mirrors(
        server, monkeypatch, "/dead", "/missing", "/truncated", "/wrong", "/page", "/endless", "/silent"
    )
    with pytest.raises(data.DataError) as failed:
        data.load_splits("cifar10", tmp_path / "data")
    message = str(failed.value)
    for address, reason in zip(
        addresses, ("refused", "404", "100,000 bytes", "wrong MD5", "offers 44 bytes", "bytes, not", "timed out")
    ):
        line = next(line for line in message.splitlines() if f"{address}:" in line)
        assert reason in line
    assert "cifar-10-python.tar.gz" in message and "--dataset digits" in message
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]
