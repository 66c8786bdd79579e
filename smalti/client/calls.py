"""Calls of a server with retries, and streams that resume; blocking and for asyncio."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from typing import Any, TypeVar

from grpc.aio import EOF

from smalti.client.base import CallsBase
from smalti.client.retries import ResumableStream
from smalti.errors import SmaltiError

Item = TypeVar("Item")


class BlockingCalls(CallsBase):
    """Calls of a blocking channel; thread-safe."""

    def call(
        self,
        method: Callable[..., Any],
        request: Any,
        *,
        full_seconds: float = 0.0,
        seconds: float | None = None,
    ) -> Any:
        """Makes a call, with retries, and returns its response.

        Args:
            method: a method of a stub.
            request: the message; for a method that takes a stream, a function that returns a new iterator of messages.
            full_seconds: how long to wait while the server is full.
            seconds: time limit for each try; None for that of the client.

        Raises:
            SmaltiError: the call failed.
        """
        budget = self.call_budget(full_seconds)
        while True:
            try:
                with self.translated():
                    response = self.attempt(method, request, seconds)
                self.note_answer(None)
                return response
            except SmaltiError as error:
                self.note_answer(error)
                pause = budget.pause(error)
            time.sleep(pause)

    def pages(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        """Yields the pages of a list; the request is changed."""
        while True:
            page = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def resume(
        self, method: Callable[..., Any], stream: ResumableStream[Any, Any, Item], seconds: float
    ) -> Generator[Item, None, None]:
        """Yields the items of a stream, over as many connections as it takes, each at most so many seconds long."""
        while not stream.done:
            error: SmaltiError | None = None
            try:
                with closing(self._connect(method, stream.request(), seconds)) as responses:
                    for response in responses:
                        item = stream.take(response)
                        if item is not None:
                            yield item
                        if stream.done:
                            return
            except SmaltiError as failed:
                error = failed
            time.sleep(stream.pause(error))

    def _connect(
        self, method: Callable[..., Any], request: Any, seconds: float
    ) -> Generator[Any, None, None]:
        call = self.attempt(method, request, seconds)
        try:
            while True:
                with self.translated():
                    response = next(call, None)
                if response is None:
                    return
                self.note_answer(None)
                yield response
        finally:
            call.cancel()


class AsyncCalls(CallsBase):
    """Calls of a channel for asyncio; the methods are those of `BlockingCalls`."""

    async def call(
        self,
        method: Callable[..., Any],
        request: Any,
        *,
        full_seconds: float = 0.0,
        seconds: float | None = None,
    ) -> Any:
        """Makes a call, with retries, and returns its response.

        Raises:
            SmaltiError: the call failed.
        """
        budget = self.call_budget(full_seconds)
        while True:
            try:
                with self.translated():
                    response = await self.attempt(method, request, seconds)
                self.note_answer(None)
                return response
            except SmaltiError as error:
                self.note_answer(error)
                pause = budget.pause(error)
            await asyncio.sleep(pause)

    async def pages(self, method: Callable[..., Any], request: Any) -> AsyncIterator[Any]:
        """Yields the pages of a list; the request is changed."""
        while True:
            page = await self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def resume(
        self, method: Callable[..., Any], stream: ResumableStream[Any, Any, Item], seconds: float
    ) -> AsyncGenerator[Item, None]:
        """Yields the items of a stream, over as many connections as it takes, each at most so many seconds long."""
        while not stream.done:
            error: SmaltiError | None = None
            try:
                async with aclosing(self._connect(method, stream.request(), seconds)) as responses:
                    async for response in responses:
                        item = stream.take(response)
                        if item is not None:
                            yield item
                        if stream.done:
                            return
            except SmaltiError as failed:
                error = failed
            await asyncio.sleep(stream.pause(error))

    async def _connect(
        self, method: Callable[..., Any], request: Any, seconds: float
    ) -> AsyncGenerator[Any, None]:
        call = self.attempt(method, request, seconds)
        try:
            while True:
                with self.translated():
                    response = await call.read()
                if response is EOF:
                    return
                self.note_answer(None)
                yield response
        finally:
            call.cancel()
