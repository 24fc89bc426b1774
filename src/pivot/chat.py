"""A language model behind an OpenAI-compatible endpoint: asked in parallel, answers kept, refusals for the moment asked again. No torch.

    chat = Chat("https://.../v1", "some-model", key="SOME_KEY")      # the name of a variable, never the key itself
    chat.ask("Is 0.5 a half?")                                       # from any thread
    chat.ask_all(prompts)                                            # as many at once as `concurrency` says

`Scripted` plays replies back: for tests, and to see what would be asked.
"""

from __future__ import annotations

import asyncio
import base64
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pivot.files import cache_folder, hash_json, read_json, write_json
from pivot.records import BadInput

if TYPE_CHECKING:
    import httpx2

KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif"}
LATER = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # what an endpoint says that may answer in a while
PATIENCE = 60.0  # seconds, the longest wait that an endpoint is granted between two tries


def data_url(image: bytes) -> str:
    """A picture's file as part of a request."""
    kind = next((kind for magic, kind in KINDS.items() if image.startswith(magic)), None)
    if not kind:
        raise BadInput("a picture for a chat is neither PNG, JPEG, WebP nor GIF; convert it first")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def messages(prompt: str, images: Sequence[bytes] = (), system: str | None = None) -> list[dict[str, Any]]:
    """One question in the form that endpoints take, pictures first."""
    pictures = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    asked: Any = [*pictures, {"type": "text", "text": prompt}] if pictures else prompt
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": asked}]


@dataclass
class Chat:
    """A client. `key` names the environment variable that holds the key; without it none is sent.

    `options` go into every request (temperature, max_tokens, seed). Answers are kept under `cache` by everything that they depend on:
    endpoint, model, options and messages; False keeps none. A refusal for the moment (429, 5xx, a lost connection) is tried `retries`
    times more, after 1, 2, 4 ... times `pause` seconds or as long as the endpoint asks for. `timeout`: seconds for one try, from asking to
    the reply's last byte.
    """

    url: str
    model: str
    key: str | None = None
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    cache: Path | str | bool = True
    retries: int = 5
    pause: float = 1.0
    timeout: float = 120.0
    concurrency: int = 8

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(f"'{self._named}' is no endpoint; give one like https://HOST/v1")
        if self.key is not None and not os.environ.get(self.key):
            raise BadInput(f"the key for {self._named} is read from the environment variable {self.key}, which is not set; set it")
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise BadInput("a chat needs concurrency of at least 1, retries of at least 0 and a timeout above 0")
        self._lock = threading.Lock()
        self._talk: _Talk | None = None

    def ask(self, prompt: str, images: Sequence[bytes] = ()) -> str:
        """The reply to one question."""
        (reply,) = self.ask_all([prompt], [images])
        return reply

    def ask_all(self, prompts: Iterable[str], images: Iterable[Sequence[bytes]] | None = None) -> list[str]:
        """The replies to many, in their order. The first error ends it; what was answered until then is kept."""
        prompts = list(prompts)
        bodies = [self._body(prompt, shown) for prompt, shown in zip(prompts, images or [()] * len(prompts), strict=True)]
        talk = self._running()
        return asyncio.run_coroutine_threadsafe(self._all(bodies, talk), talk.loop).result()

    def _body(self, prompt: str, images: Sequence[bytes]) -> dict[str, Any]:
        return {"model": self.model, **self.options, "messages": messages(prompt, images, self.system)}

    @property
    def _named(self) -> str:
        """The endpoint without what may be secret in it: a password, a key in its query."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}".rstrip("/")

    # ---- in the thread of the loop

    def _running(self) -> _Talk:
        """The loop of this process: a forked copy has none of its parent's threads and starts its own."""
        with self._lock:
            if self._talk is None or self._talk.process != os.getpid():
                self._talk = _Talk(self.concurrency, self.timeout)
            return self._talk

    async def _all(self, bodies: Sequence[Mapping[str, Any]], talk: _Talk) -> list[str]:
        tasks = [asyncio.ensure_future(self._reply(body, talk)) for body in bodies]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _reply(self, body: Mapping[str, Any], talk: _Talk) -> str:
        """From the cache, else from the endpoint."""
        kept = self._kept(body)
        if kept and kept.is_file():
            return str(read_json(kept)["reply"])
        async with talk.turns:
            said = await self._asked(body, talk)
        if kept:
            write_json(kept, {"reply": said})
        return said

    def _kept(self, body: Mapping[str, Any]) -> Path | None:
        if self.cache is False:
            return None
        folder = cache_folder() / "chat" if self.cache is True else Path(self.cache)
        name = hash_json([self._named, body])
        return folder / name[:2] / f"{name}.json"

    async def _asked(self, body: Mapping[str, Any], talk: _Talk) -> str:
        """The endpoint's reply, however many tries it takes."""
        import httpx2

        headers = {"Authorization": f"Bearer {os.environ.get(self.key, '')}"} if self.key else {}
        wrong = ""
        for tried in range(self.retries + 1):
            wait = self.pause * 2**tried
            try:
                async with asyncio.timeout(self.timeout):  # the client's own is for each read: bytes that drip would never end it
                    answer = await talk.client.post(f"{self.url.rstrip('/')}/chat/completions", json=body, headers=headers)
            except httpx2.HTTPError as lost:
                wrong = f"did not answer ({type(lost).__name__})"
            except TimeoutError:
                wrong = f"did not answer in {self.timeout:g} seconds"
            else:
                if answer.is_success:
                    return self._said(answer)
                wrong = f"says {answer.status_code}: {self._quoted(answer)}"
                if answer.status_code not in LATER:
                    raise BadInput(f"{self._named} {wrong}; check the address, the model '{self.model}' and the key")
                wait = _asked_for(answer, wait)
            if tried < self.retries:
                await asyncio.sleep(min(wait, PATIENCE))
        raise BadInput(f"{self._named} {wrong}, after {self.retries + 1} tries; try later, or with less concurrency")

    def _said(self, answer: httpx2.Response) -> str:
        try:
            said = answer.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            said = None
        if not isinstance(said, str):
            raise BadInput(f"{self._named} answered without choices[0].message.content; check that it is an OpenAI-compatible endpoint")
        return said

    def _quoted(self, answer: httpx2.Response) -> str:
        """The beginning of an error's text in one line, without the key, which some endpoints repeat."""
        said = " ".join(answer.text.split())
        key = os.environ.get(self.key, "") if self.key else ""
        return (said.replace(key, "***") if key else said)[:160] or "nothing more"


def _asked_for(answer: httpx2.Response, wait: float) -> float:
    """How long the endpoint asks to wait, in seconds; else as planned."""
    said = answer.headers.get("retry-after", "")
    return float(said) if said.isascii() and said.isdigit() else wait


class _Talk:
    """A loop in a thread of its own, with the connections that belong to it."""

    def __init__(self, concurrency: int, timeout: float) -> None:
        import httpx2

        self.process = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.turns = asyncio.Semaphore(concurrency)
        self.client = httpx2.AsyncClient(timeout=timeout)
        threading.Thread(target=self.loop.run_forever, name="pivot-chat", daemon=True).start()


@dataclass
class Scripted:
    """Plays replies back, from a list in its order or from a function of the prompt, and keeps what it was asked."""

    replies: Iterable[str] | Callable[[str], str]
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._next = None if callable(self.replies) else iter(self.replies)

    def ask(self, prompt: str, images: Sequence[bytes] = ()) -> str:
        """The next reply."""
        with self._lock:
            self.asked.append(prompt)
            if self._next is None:
                assert callable(self.replies)
                return self.replies(prompt)
            reply = next(self._next, None)
        if reply is None:
            raise BadInput(f"the script of replies ended before question {len(self.asked)}; give it more")
        return reply

    def ask_all(self, prompts: Iterable[str], images: Iterable[Sequence[bytes]] | None = None) -> list[str]:
        """The next replies, in order."""
        return [self.ask(prompt) for prompt in prompts]
