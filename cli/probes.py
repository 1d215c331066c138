"""Probes of the supervisor: whether a server is ready.

A probe returns ``None`` if the server is ready, else a phrase that says why not. It uses asyncio
alone: the supervisor probes every 100 ms from its start on, and needs no HTTP library otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib

_PROBE_SECONDS = 3.0
_ANSWER_BYTES = 4096


async def probe_http(host: str, port: int, path: str) -> str | None:
    """Check that ``GET path`` answers 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    answer = await _exchange(host, port, request.encode())
    if answer is None:
        return f"nothing answers on {host}:{port}"
    head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
    status = head.split(maxsplit=2)[1:2]
    if status == ["200"]:
        return None
    return f"{path} answers {status[0] if status else 'nonsense'}: {' '.join(body.split())[:300]}"


async def probe_redis(host: str, port: int, password: str) -> str | None:
    """Check that a Redis server accepts the password and answers a ping."""
    request = f"AUTH {password}\r\nPING\r\nQUIT\r\n"
    answer = await _exchange(host, port, request.encode())
    if answer is None:
        return f"nothing answers on {host}:{port}"
    return None if b"+PONG" in answer else answer.decode(errors="replace").strip()


async def _exchange(host: str, port: int, request: bytes) -> bytes | None:
    """Send a request and read the whole answer; ``None`` if there is none."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(request)
            answer = b""
            while len(answer) < _ANSWER_BYTES and (piece := await reader.read(_ANSWER_BYTES)):
                answer += piece
            return answer or None
    except (OSError, TimeoutError):
        return None
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
