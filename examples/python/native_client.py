"""podkv through its own API, with stubs that gRPC's generator made from proto/podkv/v1.

    python native_client.py               put, get, txn, watch, lease, lock, session, each checked
    python native_client.py --failover    a watch, a lease and writes go on while the leader is killed
"""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import grpc
from google.rpc.status_pb2 import Status
from podkv.v1 import common_pb2 as common
from podkv.v1 import kv_pb2 as kv
from podkv.v1 import kv_pb2_grpc, lease_pb2_grpc, session_pb2_grpc, watch_pb2_grpc
from podkv.v1 import lease_pb2 as lease_api
from podkv.v1 import session_pb2 as session_api
from podkv.v1 import watch_pb2 as watch_api

ENDPOINTS = os.environ.get("PODKV_ENDPOINTS", "127.0.0.1:2379")
LEASE_TTL_MS = 3000
CALL_SECONDS = 5
TRY_AGAIN_SECONDS = 0.1

Answer = TypeVar("Answer")


class Podkv:
    """The services, over one connection."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.kv = kv_pb2_grpc.KVStub(channel)
        self.watch = watch_pb2_grpc.WatchStub(channel)
        self.lease = lease_pb2_grpc.LeaseStub(channel)
        self.session = session_pb2_grpc.SessionStub(channel)


def connect() -> grpc.aio.Channel:
    # A list of addresses, of which gRPC uses the first that answers. A list is no valid name of a server (HTTP's
    # `:authority`), so that one is given. In Kubernetes a name does both: dns:///podkv-client:2379.
    return grpc.aio.insecure_channel(f"ipv4:{ENDPOINTS}", options=[("grpc.default_authority", "podkv")])


def podkv_error(error: grpc.aio.AioRpcError) -> common.Error:
    """What podkv says about a failed call. Empty if the call did not reach a node. Decide by it, never by a text."""
    found = common.Error()
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                if detail.Is(common.Error.DESCRIPTOR):
                    detail.Unpack(found)
    return found


def not_now(error: grpc.aio.AioRpcError) -> bool:
    """An election, or a node that is gone. A write may have been applied all the same: a session makes it safe."""
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def until_answered(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Repeats a call that may be sent twice without harm: a read, or a write in a session."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if not not_now(error):
                raise
            await asyncio.sleep(TRY_AGAIN_SECONDS)


def one(key: bytes) -> common.KeyRange:
    return common.KeyRange(start=key, single=True)


def all_below(prefix: bytes) -> common.KeyRange:
    return common.KeyRange(start=prefix, prefix=True)


async def get(podkv: Podkv, key: bytes, consistency: common.Consistency | None = None) -> common.KeyValue | None:
    answer = await podkv.kv.Get(kv.GetRequest(key=key, consistency=consistency), timeout=CALL_SECONDS)
    return answer.kv if answer.HasField("kv") else None


async def put_and_get(podkv: Podkv, prefix: bytes) -> None:
    key = prefix + b"greeting"
    await podkv.kv.Put(kv.PutRequest(key=key, value=b"hello"), timeout=CALL_SECONDS)
    found = await get(podkv, key)
    assert found is not None and found.value == b"hello"
    assert await get(podkv, prefix + b"nothing") is None
    # Cheaper: from the node that is asked, at most a second old.
    recent = await get(podkv, key, common.Consistency(bounded_ms=1000))
    assert recent is None or recent.value == b"hello"


async def time_to_live(podkv: Podkv, prefix: bytes) -> None:
    key = prefix + b"sessions/42"
    put = await podkv.kv.Put(kv.PutRequest(key=key, value=b"alice", ttl_ms=500), timeout=CALL_SECONDS)
    # It is deleted like any other key, and a watch tells.
    request = watch_api.WatchRequest(range=one(key), start_revision=put.header.revision + 1)
    async for message in podkv.watch.Watch(request):
        if message.HasField("events"):
            assert message.events.events[0].kind == watch_api.Event.DELETE
            break


async def compare_and_swap(podkv: Podkv, prefix: bytes) -> None:
    key = prefix + b"counter"
    await podkv.kv.Put(kv.PutRequest(key=key, value=b"1"), timeout=CALL_SECONDS)

    async def swap(expected: bytes, new: bytes) -> bool:
        txn = kv.TxnRequest(
            compare=[kv.Compare(range=one(key), operator=kv.Compare.EQUAL, value=expected)],
            then=[kv.Operation(put=kv.PutRequest(key=key, value=new))],
        )
        return bool((await podkv.kv.Txn(txn, timeout=CALL_SECONDS)).succeeded)

    assert await swap(b"1", b"2")
    assert not await swap(b"1", b"3")
    found = await get(podkv, key)
    assert found is not None and found.value == b"2" and found.version == 2


async def watch(podkv: Podkv, prefix: bytes) -> None:
    flags = prefix + b"flags/"
    await podkv.kv.Put(kv.PutRequest(key=flags + b"dark-mode", value=b"on"), timeout=CALL_SECONDS)
    # What is there, then what changes, with nothing lost between: in one step.
    messages = aiter(podkv.watch.Watch(watch_api.WatchRequest(range=all_below(flags), list=True)))
    listed: list[tuple[bytes, bytes]] = []
    while not (message := await anext(messages)).HasField("listed"):
        listed.extend((pair.key, pair.value) for pair in message.list.kvs)
    assert listed == [(flags + b"dark-mode", b"on")]
    await podkv.kv.Delete(kv.DeleteRequest(range=one(flags + b"dark-mode")), timeout=CALL_SECONDS)
    message = await anext(messages)
    assert [event.kind for event in message.events.events] == [watch_api.Event.DELETE]


async def lease(podkv: Podkv, prefix: bytes) -> None:
    key = prefix + b"instances/a"
    granted = await podkv.lease.Grant(lease_api.LeaseGrantRequest(ttl_ms=LEASE_TTL_MS), timeout=CALL_SECONDS)
    await podkv.kv.Put(kv.PutRequest(key=key, value=b"10.0.0.1", lease=granted.id), timeout=CALL_SECONDS)
    status = await podkv.lease.Status(lease_api.LeaseStatusRequest(id=granted.id, keys=True), timeout=CALL_SECONDS)
    assert list(status.keys) == [key] and 0 < status.remaining_ms <= LEASE_TTL_MS
    # What belongs to a lease goes with it.
    await podkv.lease.Revoke(lease_api.LeaseRevokeRequest(id=granted.id), timeout=CALL_SECONDS)
    assert await get(podkv, key) is None
    try:
        await podkv.lease.Revoke(lease_api.LeaseRevokeRequest(id=granted.id), timeout=CALL_SECONDS)
        raise AssertionError("a lease was revoked twice")
    except grpc.aio.AioRpcError as error:
        assert podkv_error(error).reason_name == "LeaseNotFound"


async def acquire(podkv: Podkv, key: bytes, lease_id: int) -> int:
    """Waits for a lock; returns its fencing token, which rises from holder to holder."""
    take = kv.TxnRequest(
        compare=[kv.Compare(range=one(key), operator=kv.Compare.EQUAL, create_revision=0)],
        then=[kv.Operation(put=kv.PutRequest(key=key, lease=lease_id))],
    )
    while True:
        answer = await podkv.kv.Txn(take, timeout=CALL_SECONDS)
        if answer.succeeded:
            return int(answer.header.revision)
        # From the revision of the refusal on, so that no release is missed.
        gone = watch_api.WatchRequest(range=one(key), start_revision=answer.header.revision + 1, no_put=True)
        async for message in podkv.watch.Watch(gone):
            if message.HasField("events"):
                break


async def lock(podkv: Podkv, prefix: bytes) -> None:
    key = prefix + b"nightly"
    grant = lease_api.LeaseGrantRequest(ttl_ms=LEASE_TTL_MS)
    first = await podkv.lease.Grant(grant, timeout=CALL_SECONDS)
    second = await podkv.lease.Grant(grant, timeout=CALL_SECONDS)
    token = await acquire(podkv, key, first.id)
    waiting = asyncio.create_task(acquire(podkv, key, second.id))
    # A holder that dies is released by its lease; one that is done revokes it.
    await podkv.lease.Revoke(lease_api.LeaseRevokeRequest(id=first.id), timeout=CALL_SECONDS)
    assert await waiting > token
    await podkv.lease.Revoke(lease_api.LeaseRevokeRequest(id=second.id), timeout=CALL_SECONDS)


class Session:
    """Makes writes apply exactly once, however often they are sent. For one writer at a time."""

    def __init__(self) -> None:
        # Chosen here, so that an `Open` that is sent again is the same session.
        self.id = uuid.uuid4().bytes
        self.sequence = 0

    async def open(self, podkv: Podkv) -> None:
        request = session_api.SessionOpenRequest(id=self.id, ttl_ms=60_000)
        await until_answered(lambda: podkv.session.Open(request, timeout=CALL_SECONDS))

    def next_stamp(self) -> common.SessionStamp:
        self.sequence += 1
        return common.SessionStamp(
            session_id=self.id, sequence=self.sequence, acknowledged_below=self.sequence
        )


async def session(podkv: Podkv, prefix: bytes) -> None:
    key = prefix + b"once"
    session = Session()
    await session.open(podkv)
    request = kv.PutRequest(key=key, value=b"paid", session=session.next_stamp())
    first = await podkv.kv.Put(request, timeout=CALL_SECONDS)
    # As after a lost answer. The same answer comes again, and nothing is written.
    again = await podkv.kv.Put(request, timeout=CALL_SECONDS)
    assert again.header.revision == first.header.revision
    found = await get(podkv, key)
    assert found is not None and found.version == 1
    await podkv.session.Close(session_api.SessionCloseRequest(id=session.id), timeout=CALL_SECONDS)


async def follow(podkv: Podkv, range: common.KeyRange, revision: int) -> AsyncIterator[watch_api.Event]:
    """A watch that outlives its node: it goes on at another one, after the last revision that was seen whole."""
    while True:
        try:
            request = watch_api.WatchRequest(range=range, start_revision=revision)
            held: list[watch_api.Event] = []
            async for message in podkv.watch.Watch(request):
                held.extend(message.events.events)
                if message.HasField("events") and not message.events.fragment:
                    revision = message.revision + 1
                    for event in held:
                        yield event
                    held = []
        except grpc.aio.AioRpcError as error:
            if not not_now(error):
                raise
            await asyncio.sleep(TRY_AGAIN_SECONDS)


async def keep_alive(podkv: Podkv, lease_id: int, renewed: asyncio.Queue[lease_api.LeaseKeepAliveResponse]) -> None:
    """Renews a lease three times in its life, over one stream, and opens another one if that breaks."""
    request = lease_api.LeaseKeepAliveRequest(id=lease_id)
    while True:
        try:
            stream = podkv.lease.KeepAlive()
            while True:
                await stream.write(request)
                answer = await stream.read()
                if answer is grpc.aio.EOF:
                    break
                renewed.put_nowait(answer)
                await asyncio.sleep(LEASE_TTL_MS / 1000 / 3)
        except grpc.aio.AioRpcError as error:
            if not not_now(error):
                raise
        except asyncio.InvalidStateError:
            # gRPC's word for a write to a stream that has ended.
            pass
        await asyncio.sleep(TRY_AGAIN_SECONDS)


async def failover(podkv: Podkv, prefix: bytes) -> None:
    key, log = prefix + b"instances/a", prefix + b"log"
    granted = await podkv.lease.Grant(lease_api.LeaseGrantRequest(ttl_ms=LEASE_TTL_MS), timeout=CALL_SECONDS)
    put = await podkv.kv.Put(kv.PutRequest(key=key, lease=granted.id), timeout=CALL_SECONDS)
    renewed: asyncio.Queue[lease_api.LeaseKeepAliveResponse] = asyncio.Queue()
    keeper = asyncio.create_task(keep_alive(podkv, granted.id, renewed))
    events = follow(podkv, one(log), put.header.revision + 1)

    session = Session()
    await session.open(podkv)

    async def write(value: bytes) -> None:
        request = kv.PutRequest(key=log, value=value, session=session.next_stamp())
        await until_answered(lambda: podkv.kv.Put(request, timeout=CALL_SECONDS))

    await write(b"before")
    assert (await anext(events)).kv.value == b"before"

    print("ready: kill the leader, then press Enter", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

    for number in range(10):
        await write(b"after %d" % number)
    for number in range(10):
        event = await anext(events)
        # Each write once, in order, however often it was sent.
        assert (event.kv.value, event.kv.version) == (b"after %d" % number, number + 2)

    # Renewals from before the kill do not count. The lease must live longer than it would have without renewals.
    while not renewed.empty():
        renewed.get_nowait()
    clock = asyncio.get_running_loop().time
    killed_at = clock()
    while clock() - killed_at <= LEASE_TTL_MS / 1000:
        answer = await renewed.get()
        assert not answer.HasField("error"), answer.error.reason_name
    assert await get(podkv, key) is not None
    keeper.cancel()
    await podkv.lease.Revoke(lease_api.LeaseRevokeRequest(id=granted.id), timeout=CALL_SECONDS)


async def main() -> None:
    prefix = f"examples/{uuid.uuid4()}/".encode()
    async with connect() as channel:
        podkv = Podkv(channel)
        if "--failover" in sys.argv:
            await failover(podkv, prefix)
        else:
            for example in (put_and_get, time_to_live, compare_and_swap, watch, lease, lock, session):
                await example(podkv, prefix)
                print(f"{example.__name__}: ok")
        await podkv.kv.Delete(kv.DeleteRequest(range=all_below(prefix)), timeout=CALL_SECONDS)


asyncio.run(main())
