"""The mock provider without a C compiler, for --quick: as native/upstream.c, plain answers only.

python -m bench.python_upstream PORT
"""

from __future__ import annotations

import asyncio
import json
import sys

_ANSWER = json.dumps(
    {
        "id": "chatcmpl-Bx1yZ0a9Qk2mN3pR4sT5uV6w",
        "object": "chat.completion",
        "created": 1763600000,
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Revenue rose by 12 percent to 418 million."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 189, "completion_tokens": 34, "total_tokens": 223},
    }
).encode()


class Provider:
    """Answers every request alike and counts; `GET /count` tells the count."""

    def __init__(self) -> None:
        self._plain = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, length, after = head.partition(b"\r\ncontent-length:")
                if length:
                    await reader.readexactly(int(after.split(b"\r\n", 1)[0]))
                if head.startswith(b"get /count "):
                    body = json.dumps({"plain": self._plain, "streams": 0}).encode()
                else:
                    self._plain += 1
                    body = _ANSWER
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                    % (len(body), body)
                )
                await writer.drain()
        except (OSError, EOFError):
            writer.close()


async def main() -> None:
    server = await asyncio.start_server(Provider().serve, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
