"""podkv through etcd's API, with the client package aetcd (https://aetcd.readthedocs.io), unchanged.

    python etcd_client.py               put, get, txn, watch, lease, lock, each checked
    python etcd_client.py --failover    a watch and a lease go on while the leader is killed
"""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import aetcd

ENDPOINTS = os.environ.get("PODKV_ENDPOINTS", "127.0.0.1:2379")
LEASE_TTL_SECONDS = 3
TRY_AGAIN_SECONDS = 0.1
# Not now: an election, or a node that is gone. A write may have been applied all the same.
NOT_NOW = (aetcd.ConnectionFailedError, aetcd.ConnectionTimeoutError)


def connect() -> aetcd.Client:
    # aetcd takes one host, in any form that gRPC understands: here a list of addresses, of which gRPC uses the first
    # that answers. A list is no valid name of a server (HTTP's `:authority`), so that one is given.
    # In Kubernetes a name does both: aetcd.Client("dns:///podkv-client", 2379).
    hosts, _, port = f"ipv4:{ENDPOINTS}".rpartition(":")
    return aetcd.Client(hosts, int(port), timeout=5, options={"grpc.default_authority": "podkv"})


async def put_and_get(client: aetcd.Client, prefix: bytes) -> None:
    await client.put(prefix + b"greeting", b"hello")
    found = await client.get(prefix + b"greeting")
    assert found is not None and found.value == b"hello"
    assert await client.get(prefix + b"nothing") is None


async def compare_and_swap(client: aetcd.Client, prefix: bytes) -> None:
    key = prefix + b"counter"
    await client.put(key, b"1")

    async def swap(expected: bytes, new: bytes) -> bool:
        txn = client.transactions
        swapped, _ = await client.transaction(
            compare=[txn.value(key) == expected], success=[txn.put(key, new)], failure=[]
        )
        return bool(swapped)

    assert await swap(b"1", b"2")
    assert not await swap(b"1", b"3")
    found = await client.get(key)
    assert found is not None and found.value == b"2" and found.version == 2


async def watch(client: aetcd.Client, prefix: bytes) -> None:
    watched = await client.watch_prefix(prefix + b"flags/")
    await client.put(prefix + b"flags/dark-mode", b"on")
    await client.delete(prefix + b"flags/dark-mode")
    events = aiter(watched)
    put, deleted = await anext(events), await anext(events)
    assert (put.kind, put.kv.value) == (aetcd.EventKind.PUT, b"on")
    assert (deleted.kind, deleted.kv.key) == (aetcd.EventKind.DELETE, put.kv.key)
    await watched.cancel()


async def lease(client: aetcd.Client, prefix: bytes) -> None:
    key = prefix + b"instances/a"
    lease = await client.lease(LEASE_TTL_SECONDS)
    await client.put(key, b"10.0.0.1", lease=lease)
    assert (await lease.refresh()).TTL == LEASE_TTL_SECONDS
    assert list(await lease.keys()) == [key]
    # What belongs to a lease goes with it.
    await lease.revoke()
    assert await client.get(key) is None


async def lock(client: aetcd.Client, prefix: bytes) -> None:
    async with client.lock(prefix + b"nightly", ttl=10) as held:
        assert await held.is_acquired()
        other = client.lock(prefix + b"nightly", ttl=10)
        waiting = asyncio.create_task(other.acquire())
        assert not await other.is_acquired()
    # Released: it goes to who waits.
    assert await waiting and await other.is_acquired()
    await other.release()


async def follow(client: aetcd.Client, prefix: bytes, revision: int) -> AsyncIterator[aetcd.Event]:
    """A watch that outlives its node: it goes on at another one, after the last revision that was seen."""
    while True:
        try:
            async for event in await client.watch_prefix(prefix, start_revision=revision):
                revision = event.kv.mod_revision + 1
                yield event
        except NOT_NOW:
            await asyncio.sleep(TRY_AGAIN_SECONDS)


async def keep_alive(lease: aetcd.Lease, renewed: asyncio.Queue[int]) -> None:
    """Renews a lease three times in its life, and more often if a renewal fails."""
    while True:
        try:
            renewal = await lease.refresh()
            renewed.put_nowait(renewal.TTL)
            await asyncio.sleep(lease.ttl / 3)
        except NOT_NOW:
            await asyncio.sleep(TRY_AGAIN_SECONDS)


async def until_answered(call: Callable[[], Awaitable[object]]) -> None:
    """Repeats a call that may run twice without harm."""
    while True:
        try:
            await call()
            return
        except NOT_NOW:
            await asyncio.sleep(TRY_AGAIN_SECONDS)


async def failover(client: aetcd.Client, prefix: bytes) -> None:
    key = prefix + b"instances/a"
    lease = await client.lease(LEASE_TTL_SECONDS)
    await client.put(key, b"10.0.0.1", lease=lease)
    renewed: asyncio.Queue[int] = asyncio.Queue()
    keeper = asyncio.create_task(keep_alive(lease, renewed))

    started = await client.get(key)
    assert started is not None
    events = follow(client, prefix + b"log/", started.mod_revision + 1)
    await client.put(prefix + b"log/1", b"before")
    assert (await anext(events)).kv.value == b"before"

    print("ready: kill the leader, then press Enter", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

    await until_answered(lambda: client.put(prefix + b"log/2", b"after"))
    assert (await anext(events)).kv.value == b"after"

    # Renewals from before the kill do not count. The lease must live longer than it would have without renewals.
    while not renewed.empty():
        renewed.get_nowait()
    clock = asyncio.get_running_loop().time
    killed_at = clock()
    while clock() - killed_at <= LEASE_TTL_SECONDS:
        assert await renewed.get() > 0, "the lease is lost"
    assert await client.get(key) is not None
    keeper.cancel()
    await lease.revoke()


async def main() -> None:
    prefix = f"examples/{uuid.uuid4()}/".encode()
    async with connect() as client:
        if "--failover" in sys.argv:
            await failover(client, prefix)
        else:
            for example in (put_and_get, compare_and_swap, watch, lease, lock):
                await example(client, prefix)
                print(f"{example.__name__}: ok")
        await client.delete_prefix(prefix)


asyncio.run(main())
