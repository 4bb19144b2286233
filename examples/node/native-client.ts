// podkv through its own API, with types and clients that ts-proto made from proto/podkv/v1.
//
//     node --import tsx native-client.ts               put, get, txn, watch, lease, lock, session, each checked
//     node --import tsx native-client.ts --failover    a watch, a lease and writes go on while the leader is killed

import assert from "node:assert/strict";
import { randomBytes, randomUUID } from "node:crypto";
import { EventEmitter, once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { ClientError, Status, createChannel, createClient } from "nice-grpc";
import type { KeyRange, KeyValue, SessionStamp } from "./generated/podkv/v1/common.js";
import { Compare_Operator, KVDefinition } from "./generated/podkv/v1/kv.js";
import { LeaseDefinition } from "./generated/podkv/v1/lease.js";
import { SessionDefinition } from "./generated/podkv/v1/session.js";
import { type Event, Event_Kind, WatchDefinition } from "./generated/podkv/v1/watch.js";

const endpoints = process.env.PODKV_ENDPOINTS ?? "127.0.0.1:2379";
const LEASE_TTL_MS = 3_000;
const CALL_MS = 5_000;
const TRY_AGAIN_MS = 100;

// A list of addresses, of which gRPC uses the first that answers. A list is no valid name of a server (HTTP's
// `:authority`), so that one is given. In Kubernetes a name does both: dns:podkv-client:2379.
const channel = createChannel(`ipv4:${endpoints}`, undefined, { "grpc.default_authority": "podkv" });
const kv = createClient(KVDefinition, channel);
const watches = createClient(WatchDefinition, channel);
const leases = createClient(LeaseDefinition, channel);
const sessions = createClient(SessionDefinition, channel);

/** Every call but a stream has an end. */
const soon = () => ({ signal: AbortSignal.timeout(CALL_MS) });

const one = (key: string): KeyRange => ({ start: Buffer.from(key), end: { $case: "single", value: true } });
const allBelow = (prefix: string): KeyRange => ({ start: Buffer.from(prefix), end: { $case: "prefix", value: true } });

async function put(key: string, value: string, more: { lease?: bigint; ttlMs?: bigint; session?: SessionStamp } = {}) {
  const answer = await kv.put({ key: Buffer.from(key), value: Buffer.from(value), ...more }, soon());
  return answer.header!.revision;
}

async function get(key: string): Promise<KeyValue | undefined> {
  return (await kv.get({ key: Buffer.from(key) }, soon())).kv;
}

/** An election, or a node that is gone. A write may have been applied all the same: a session makes it safe. */
function notNow(error: unknown): boolean {
  const late = error instanceof Error && (error.name === "AbortError" || error.name === "TimeoutError");
  const refused = error instanceof ClientError && [Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED].includes(error.code);
  return late || refused;
}

/** Repeats a call that may be sent twice without harm: a read, or a write in a session. */
async function untilAnswered<T>(call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (!notNow(error)) throw error;
      await sleep(TRY_AGAIN_MS);
    }
  }
}

async function putAndGet(prefix: string) {
  await put(`${prefix}greeting`, "hello");
  assert.equal((await get(`${prefix}greeting`))?.value.toString(), "hello");
  assert.equal(await get(`${prefix}nothing`), undefined);
  // Cheaper: from the node that is asked, at most a second old.
  const recent = await kv.get(
    { key: Buffer.from(`${prefix}greeting`), consistency: { level: { $case: "boundedMs", value: 1_000 } } },
    soon(),
  );
  assert.ok(recent.kv === undefined || recent.kv.value.toString() === "hello");
}

async function timeToLive(prefix: string) {
  const key = `${prefix}sessions/42`;
  const revision = await put(key, "alice", { ttlMs: 500n });
  // It is deleted like any other key, and a watch tells.
  for await (const event of follow(one(key), revision + 1n)) {
    assert.equal(event.kind, Event_Kind.DELETE);
    break;
  }
}

async function compareAndSwap(prefix: string) {
  const key = `${prefix}counter`;
  await put(key, "1");
  const swap = async (expected: string, to: string) => {
    const answer = await kv.txn(
      {
        compare: [
          {
            range: one(key),
            operator: Compare_Operator.EQUAL,
            target: { $case: "value", value: Buffer.from(expected) },
          },
        ],
        then: [{ operation: { $case: "put", value: { key: Buffer.from(key), value: Buffer.from(to) } } }],
      },
      soon(),
    );
    return answer.succeeded;
  };
  assert.equal(await swap("1", "2"), true);
  assert.equal(await swap("1", "3"), false);
  assert.equal((await get(key))?.value.toString(), "2");
}

async function watch(prefix: string) {
  const key = `${prefix}flags/dark-mode`;
  await put(key, "on");
  // What is there, then what changes, with nothing lost between: in one step.
  const listed: string[] = [];
  for await (const { message } of watches.watch({ range: allBelow(`${prefix}flags/`), list: true })) {
    if (message?.$case === "list") {
      listed.push(...message.value.kvs.map(({ key }) => key.toString()));
    } else if (message?.$case === "listed") {
      assert.deepEqual(listed, [key]);
      await kv.delete({ range: one(key) }, soon());
    } else if (message?.$case === "events") {
      assert.deepEqual(message.value.events.map(({ kind }) => kind), [Event_Kind.DELETE]);
      break;
    }
  }
}

async function lease(prefix: string) {
  const key = `${prefix}instances/a`;
  const { id } = await leases.grant({ ttlMs: LEASE_TTL_MS }, soon());
  await put(key, "10.0.0.1", { lease: id });
  const status = await leases.status({ id, keys: true }, soon());
  assert.deepEqual(status.keys.map(String), [key]);
  // What belongs to a lease goes with it.
  await leases.revoke({ id }, soon());
  assert.equal(await get(key), undefined);
}

/** Waits for a lock; returns its fencing token, which rises from holder to holder. */
async function acquire(key: string, lease: bigint): Promise<bigint> {
  for (;;) {
    const answer = await kv.txn(
      {
        compare: [
          { range: one(key), operator: Compare_Operator.EQUAL, target: { $case: "createRevision", value: 0n } },
        ],
        then: [{ operation: { $case: "put", value: { key: Buffer.from(key), lease } } }],
      },
      soon(),
    );
    const revision = answer.header!.revision;
    if (answer.succeeded) return revision;
    // From the revision of the refusal on, so that no release is missed.
    for await (const event of follow(one(key), revision + 1n)) {
      if (event.kind === Event_Kind.DELETE) break;
    }
  }
}

async function lock(prefix: string) {
  const key = `${prefix}nightly`;
  const first = await leases.grant({ ttlMs: LEASE_TTL_MS }, soon());
  const second = await leases.grant({ ttlMs: LEASE_TTL_MS }, soon());
  const token = await acquire(key, first.id);
  const waiting = acquire(key, second.id);
  // A holder that dies is released by its lease; one that is done revokes it.
  await leases.revoke({ id: first.id }, soon());
  assert.ok((await waiting) > token);
  await leases.revoke({ id: second.id }, soon());
}

/** Makes writes apply exactly once, however often they are sent. For one writer at a time. */
class Session {
  // Chosen here, so that an `open` that is sent again is the same session.
  readonly id = randomBytes(16);
  private sequence = 0n;

  async open() {
    await untilAnswered(() => sessions.open({ id: this.id, ttlMs: 60_000 }, soon()));
  }

  nextStamp(): SessionStamp {
    this.sequence += 1n;
    return { sessionId: this.id, sequence: this.sequence, acknowledgedBelow: this.sequence };
  }
}

async function session(prefix: string) {
  const session = new Session();
  await session.open();
  const stamp = session.nextStamp();
  const first = await put(`${prefix}once`, "paid", { session: stamp });
  // As after a lost answer. The same answer comes again, and nothing is written.
  const again = await put(`${prefix}once`, "paid", { session: stamp });
  assert.equal(again, first);
  assert.equal((await get(`${prefix}once`))?.version, 1n);
  await sessions.close({ id: session.id }, soon());
}

/** A watch that outlives its node: it goes on at another one, after the last revision that was seen whole. */
async function* follow(range: KeyRange, revision: bigint): AsyncGenerator<Event, undefined> {
  for (;;) {
    try {
      let held: Event[] = [];
      for await (const answer of watches.watch({ range, startRevision: revision })) {
        if (answer.message?.$case !== "events") continue;
        held.push(...answer.message.value.events);
        if (answer.message.value.fragment) continue;
        revision = answer.revision + 1n;
        yield* held;
        held = [];
      }
    } catch (error) {
      if (!notNow(error)) throw error;
    }
    await sleep(TRY_AGAIN_MS);
  }
}

async function nextEvent(events: AsyncGenerator<Event, undefined>): Promise<Event> {
  const { value } = await events.next();
  assert.ok(value, "a watch ended");
  return value;
}

/** Renews a lease three times in its life, over one stream, and opens another one if that breaks. */
async function keepAlive(id: bigint, renewals: EventEmitter, stop: AbortSignal) {
  async function* requests() {
    while (!stop.aborted) {
      yield { id };
      await sleep(LEASE_TTL_MS / 3, undefined, { signal: stop });
    }
  }
  while (!stop.aborted) {
    try {
      for await (const { error } of leases.keepAlive(requests(), { signal: stop })) {
        if (error) throw new Error(`the lease is lost: ${error.reasonName}`);
        renewals.emit("renewed");
      }
    } catch (error) {
      if (stop.aborted) return;
      if (!notNow(error)) throw error;
    }
    await sleep(TRY_AGAIN_MS);
  }
}

async function failover(prefix: string) {
  const { id } = await leases.grant({ ttlMs: LEASE_TTL_MS }, soon());
  const started = await put(`${prefix}instances/a`, "10.0.0.1", { lease: id });
  const renewals = new EventEmitter();
  const stop = new AbortController();
  const keeper = keepAlive(id, renewals, stop.signal);

  const log = `${prefix}log`;
  const events = follow(one(log), started + 1n);
  const session = new Session();
  await session.open();
  const write = (value: string) => {
    const stamp = session.nextStamp();
    return untilAnswered(() => put(log, value, { session: stamp }));
  };
  await write("before");
  assert.equal((await nextEvent(events)).kv?.value.toString(), "before");

  console.log("ready: kill the leader, then press Enter");
  await once(process.stdin, "data");
  const killedAt = Date.now();

  for (let number = 0; number < 10; number++) await write(`after ${number}`);
  for (let number = 0; number < 10; number++) {
    // Each write once, in order, however often it was sent.
    const { kv } = await nextEvent(events);
    assert.deepEqual([kv?.value.toString(), kv?.version], [`after ${number}`, BigInt(number + 2)]);
  }

  // The lease must live longer than it would have without renewals.
  while (Date.now() - killedAt <= LEASE_TTL_MS) {
    await Promise.race([once(renewals, "renewed"), keeper]);
  }
  assert.ok(await get(`${prefix}instances/a`));
  stop.abort();
  await keeper;
  await events.return(undefined);
  await leases.revoke({ id }, soon());
}

const prefix = `examples/${randomUUID()}/`;
if (process.argv.includes("--failover")) {
  await failover(prefix);
} else {
  for (const example of [putAndGet, timeToLive, compareAndSwap, watch, lease, lock, session]) {
    await example(prefix);
    console.log(`${example.name}: ok`);
  }
}
await kv.delete({ range: allBelow(prefix) }, soon());
channel.close();
process.stdin.destroy();
