"""The client of language models, against a server of the test's own on 127.0.0.1."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pivot.chat import Chat, Scripted, data_url, messages
from pivot.records import BadInput

KEY = "sk-very-secret"
PNG = b"\x89PNG\r\n\x1a\n..."
Reply = tuple[int, Any, dict[str, str]]


class Endpoint(ThreadingHTTPServer):
    """Says what `answer(request, number of the request)` returns, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any], int], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked, self.headers, self.lock = answer, list[dict[str, Any]](), list[dict[str, str]](), threading.Lock()
        self.at_once = self.most_at_once = 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
            number = len(self.server.asked)
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            status, said, headers = self.server.answer({**body, "path": self.path}, number)
        finally:
            with self.server.lock:
                self.server.at_once -= 1
        if status == 0:  # hang up
            self.close_connection = True
            return
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def fine(text: str) -> Reply:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


def echo(body: dict[str, Any], number: int) -> Reply:
    return fine(f"you said {body['messages'][-1]['content']}")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Endpoint]]:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running: list[Endpoint] = []

    def start(answer: Callable[[dict[str, Any], int], Reply] = echo) -> Endpoint:
        running.append(Endpoint(answer))
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def test_a_question_is_sent_as_endpoints_take_it(endpoint: Callable[..., Endpoint]) -> None:
    server = endpoint()
    chat = Chat(server.url + "/", "some-model", key="TEST_KEY", system="Be short.", options={"temperature": 0})
    assert chat.ask("Is it a dog?") == "you said Is it a dog?"
    system, asked = {"role": "system", "content": "Be short."}, {"role": "user", "content": "Is it a dog?"}
    assert server.asked == [{"model": "some-model", "temperature": 0, "messages": [system, asked]}]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    Chat(server.url, "some-model").ask("and a cat?")
    assert "authorization" not in server.headers[1]


def test_pictures_go_into_the_question(endpoint: Callable[..., Endpoint]) -> None:
    server = endpoint(lambda body, number: fine("a picture"))
    Chat(server.url, "m").ask("what?", [PNG, b"\xff\xd8\xff..."])
    first, second, text = server.asked[0]["messages"][0]["content"]
    assert first == {"type": "image_url", "image_url": {"url": data_url(PNG)}} and text == {"type": "text", "text": "what?"}
    assert first["image_url"]["url"].startswith("data:image/png;base64,iVBORw0K") and "image/jpeg" in second["image_url"]["url"]
    assert messages("what?") == [{"role": "user", "content": "what?"}]
    with pytest.raises(BadInput, match="neither PNG"):
        data_url(b"BM....")


def test_answers_are_kept_by_all_that_they_depend_on(endpoint: Callable[..., Endpoint], tmp_path: Path) -> None:
    server = endpoint(lambda body, number: fine(str(number)))
    chat = Chat(server.url, "m", key="TEST_KEY")
    assert [chat.ask("a"), chat.ask("a"), Chat(server.url, "m").ask("a")] == ["1", "1", "1"]
    others = [
        Chat(server.url, "n"),
        Chat(server.url, "m", options={"seed": 1}),
        Chat(server.url, "m", system="x"),
        Chat(endpoint().url, "m"),
    ]
    assert len({other.ask("a") for other in others}) == 4 and "1" not in {chat.ask("b"), chat.ask("a", [PNG]), others[0].ask("a")}
    before = len(server.asked)
    assert Chat(server.url, "m", cache=False).ask("a") != "1" and Chat(server.url, "m", cache=tmp_path / "own").ask("a") != "1"
    assert len(server.asked) == before + 2 and len(list((tmp_path / "own").rglob("*.json"))) == 1
    assert not any(KEY in file.read_text() for file in tmp_path.rglob("*.json"))


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_a_refusal_for_the_moment_is_asked_again(endpoint: Callable[..., Endpoint], status: int) -> None:
    server = endpoint(lambda body, number: echo(body, number) if number > 2 else (status, {"error": "busy"}, {}))
    start = time.monotonic()
    assert Chat(server.url, "m", pause=0.05, retries=2).ask("a") == "you said a"
    assert len(server.asked) == 3 and time.monotonic() - start >= 0.15  # 0.05, then 0.1


def test_it_waits_as_long_as_it_is_asked_to(endpoint: Callable[..., Endpoint]) -> None:
    server = endpoint(lambda body, number: echo(body, number) if number > 1 else (429, {}, {"retry-after": "1"}))
    start = time.monotonic()
    Chat(server.url, "m", pause=0.001).ask("a")
    assert time.monotonic() - start >= 1


BROKEN: list[tuple[Reply, str, int]] = [
    ((429, {"error": "busy"}, {}), "says 429", 2),
    ((0, {}, {}), "did not answer", 2),
    ((401, f"bad key {KEY}\n\x1b[0m twice {KEY}".encode(), {}), "says 401", 1),
    ((404, b"<html>" + b"x" * 10_000, {}), "says 404", 1),
    ((400, {}, {}), "says 400", 1),
    ((200, b"not json", {}), "OpenAI-compatible", 1),
    ((200, {"choices": []}, {}), "OpenAI-compatible", 1),
    ((200, {"choices": [{"message": {"content": None}}]}, {}), "OpenAI-compatible", 1),
    ((200, ["choices"], {}), "OpenAI-compatible", 1),
]


@pytest.mark.parametrize(("reply", "says", "times"), BROKEN)
def test_errors_name_the_endpoint_and_never_the_key(endpoint: Callable[..., Endpoint], reply: Reply, says: str, times: int) -> None:
    server = endpoint(lambda body, number: reply)
    secret = server.url.replace("http://", f"http://user:{KEY}@")
    with pytest.raises(BadInput) as failed:
        Chat(secret, "m", key="TEST_KEY", pause=0.01, retries=1).ask("a")
    said = str(failed.value)
    assert says in said and server.url in said and KEY not in said and "user" not in said and "\n" not in said and len(said) < 400
    assert len(server.asked) == times


def test_a_server_that_is_silent_or_absent(endpoint: Callable[..., Endpoint]) -> None:
    server = endpoint(lambda body, number: (time.sleep(0.5), echo(body, number))[1])
    with pytest.raises(BadInput, match=r"did not answer.*after 1 tries"):
        Chat(server.url, "m", timeout=0.1, retries=0).ask("a")
    server.shutdown()
    server.server_close()
    with pytest.raises(BadInput, match=r"did not answer \(ConnectError\)"):
        Chat(server.url, "m", pause=0.01, retries=1).ask("b")


@pytest.mark.parametrize("drips", ["head", "body"])
def test_a_server_that_drips_is_given_no_more_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, drips: str) -> None:
    """A byte every 50 ms: no read is slow, the reply as a whole is."""
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    answer = json.dumps(fine("late")[1]).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection:
            connection.recv(65_536)
            connection.sendall(head if drips == "body" else b"")
            for byte in answer if drips == "body" else head:
                if over.wait(0.05):
                    return
                with suppress(OSError):  # who asked has gone
                    connection.sendall(bytes([byte]))

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: drip(server.accept()[0]), daemon=True).start()
        chat = Chat(f"http://127.0.0.1:{server.getsockname()[1]}/v1", "m", timeout=0.3, retries=0)
        start = time.monotonic()
        with pytest.raises(BadInput, match=r"did not answer in 0\.3 seconds, after 1 tries"):
            chat.ask("a")
        assert time.monotonic() - start < 2
        over.set()


def test_many_are_asked_at_once_and_come_back_in_order(endpoint: Callable[..., Endpoint]) -> None:
    server = endpoint(lambda body, number: (time.sleep(0.05), echo(body, number))[1])
    chat = Chat(server.url, "m", concurrency=4)
    assert chat.ask_all(str(n) for n in range(12)) == [f"you said {n}" for n in range(12)]
    assert server.most_at_once == 4
    with ThreadPoolExecutor(8) as threads:  # from any thread, and together they keep the limit
        assert list(threads.map(chat.ask, map(str, range(20, 36)))) == [f"you said {n}" for n in range(20, 36)]
    assert server.most_at_once == 4


def test_the_first_error_ends_it_and_what_was_answered_is_kept(endpoint: Callable[..., Endpoint]) -> None:
    server = endpoint(lambda body, number: (400, {}, {}) if body["messages"][0]["content"] == "2" else echo(body, number))
    chat = Chat(server.url, "m", concurrency=1)
    with pytest.raises(BadInput, match="says 400"):
        chat.ask_all(map(str, range(5)))
    assert chat.ask("1") == "you said 1"
    asked = [body["messages"][0]["content"] for body in server.asked]
    assert asked.count("1") == 1 and "4" not in asked


def test_a_forked_copy_talks_too(endpoint: Callable[..., Endpoint]) -> None:
    """Its parent's loop runs in a thread that it does not have."""
    chat = Chat(endpoint().url, "m", cache=False)
    chat.ask("a")
    child = os.fork()
    if not child:
        right = False
        try:
            right = chat.ask("b") == "you said b"
        finally:
            os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "localhost:8000"}, "no endpoint"),
        ({"url": "file:///etc/passwd"}, "no endpoint"),
        ({"url": ""}, "no endpoint"),
        ({"key": "NO_SUCH_KEY"}, "NO_SUCH_KEY, which is not set"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_a_chat_that_cannot_work_is_refused_at_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as refused:
        Chat(**{"url": "http://127.0.0.1/v1", "model": "m", **options})
    assert "\n" not in str(refused.value)


def test_scripts() -> None:
    script = Scripted(["a", "b", "c"])
    assert script.ask("1") == "a" and script.ask_all(["2", "3"]) == ["b", "c"] and script.asked == ["1", "2", "3"]
    with pytest.raises(BadInput, match="ended before question 4"):
        script.ask("4")
    assert Scripted(str.upper).ask("yes") == "YES"


def test_a_chat_needs_no_torch_and_no_client_until_it_talks() -> None:
    code = "import sys, pivot.chat; sys.exit(bool({'torch', 'transformers', 'httpx2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
