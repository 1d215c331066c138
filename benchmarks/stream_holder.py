"""Holds event streams and waits open, in a separate process that disturbs no measurement.

``python -m benchmarks.stream_holder HOST PORT NUM_STREAMS NUM_WAITS`` reads the ids of
jobs from the first line of its input, opens the connections, writes ``held`` and the number that
were refused, and keeps them until its input ends. A wait that times out is repeated.
"""

from __future__ import annotations

import asyncio
import sys

WAIT_SECONDS = 30
OPEN_AT_ONCE = 100


class Holder:
    """All connections of one run."""

    def __init__(self, host: str, port: int) -> None:
        """Open nothing yet."""
        self.num_refused = 0
        self._address = (host, port)
        self._gate = asyncio.Semaphore(OPEN_AT_ONCE)
        self._tasks: list[asyncio.Task[None]] = []

    async def hold(self, job_ids: list[str], num_streams: int, num_waits: int) -> None:
        """Open all connections."""
        paths = [f"/api/v1/jobs/{job_ids[n % len(job_ids)]}" for n in range(num_streams)]
        await asyncio.gather(*(self._stream(path + "/events") for path in paths))
        begun = [asyncio.Event() for _ in range(num_waits)]
        for number, event in enumerate(begun):
            path = f"/api/v1/jobs/{job_ids[number % len(job_ids)]}?wait={WAIT_SECONDS}"
            self._tasks.append(asyncio.create_task(self._wait(path, event)))
        await asyncio.gather(*(event.wait() for event in begun))

    async def _stream(self, path: str) -> None:
        async with self._gate:
            reader, writer = await self._asked(path)
            head = await reader.readuntil(b"\r\n\r\n")
            self.num_refused += not head.startswith(b"HTTP/1.1 200")
            self._tasks.append(asyncio.create_task(self._read(reader, writer)))

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass
        writer.close()

    async def _wait(self, path: str, begun: asyncio.Event) -> None:
        while True:
            async with self._gate:
                reader, writer = await self._asked(path)
            begun.set()
            head = await reader.read(65_536)
            self.num_refused += not head.startswith(b"HTTP/1.1 200")
            writer.close()

    async def _asked(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self._address)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return reader, writer


async def main(host: str, port: int, num_streams: int, num_waits: int) -> None:
    """Hold the connections until standard input ends."""
    holder = Holder(host, port)
    job_ids = sys.stdin.readline().split()
    await holder.hold(job_ids, num_streams, num_waits)
    print("held", holder.num_refused, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print("refused", holder.num_refused, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *(int(text) for text in sys.argv[2:])))
