// podkv through etcd's API, with the client package etcd3 (https://github.com/microsoft/etcd3), unchanged.
//
//     node --import tsx etcd-client.ts               put, get, txn, watch, lease, lock, each checked
//     node --import tsx etcd-client.ts --failover    a watch and a lease go on while the leader is killed

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { on, once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { Etcd3, EtcdLockFailedError, type IKeyValue, isRecoverableError, type Namespace, type Watcher } from "etcd3";

const hosts = (process.env.PODKV_ENDPOINTS ?? "127.0.0.1:2379").split(",");
const LEASE_TTL_SECONDS = 3;
const CALL_MS = 5_000;
const TRY_AGAIN_MS = 100;

function connect(): Etcd3 {
  return new Etcd3({
    hosts,
    // Without it a call at a node that hangs waits for ever. A stream has no end of its own.
    defaultCallOptions: ({ isStream }) => (isStream ? {} : { deadline: Date.now() + CALL_MS }),
  });
}

async function putAndGet(kv: Namespace) {
  await kv.put("greeting").value("hello");
  assert.equal(await kv.get("greeting").string(), "hello");
  assert.equal(await kv.get("nothing").string(), null);
}

async function compareAndSwap(kv: Namespace) {
  await kv.put("counter").value("1");
  const swap = async (expected: string, to: string) => {
    const answer = await kv.if("counter", "Value", "==", expected).then(kv.put("counter").value(to)).commit();
    return answer.succeeded;
  };
  assert.equal(await swap("1", "2"), true);
  assert.equal(await swap("1", "3"), false);
  assert.equal(await kv.get("counter").string(), "2");
}

async function watch(kv: Namespace) {
  const watcher = await kv.watch().prefix("flags/").create();
  const put = once(watcher, "put");
  const deleted = once(watcher, "delete");
  await kv.put("flags/dark-mode").value("on");
  await kv.delete().key("flags/dark-mode");
  assert.equal((await put)[0].value.toString(), "on");
  assert.equal((await deleted)[0].key.toString(), "flags/dark-mode");
  await watcher.cancel();
}

async function lease(kv: Namespace) {
  // Kept alive by the package until it is revoked.
  const lease = kv.lease(LEASE_TTL_SECONDS);
  await lease.put("instances/a").value("10.0.0.1");
  assert.equal((await lease.keepaliveOnce()).TTL, String(LEASE_TTL_SECONDS));
  // What belongs to a lease goes with it.
  await lease.revoke();
  assert.equal(await kv.get("instances/a").string(), null);
}

async function lock(kv: Namespace) {
  const held = await kv.lock("nightly").ttl(10).acquire();
  // This package does not wait for a lock: it says who is first.
  await assert.rejects(kv.lock("nightly").ttl(10).acquire(), EtcdLockFailedError);
  await held.release();
  const result = await kv.lock("nightly").ttl(10).do(async () => "done");
  assert.equal(result, "done");
}

/** The puts that a watch reports, as a sequence. The package goes on at another node by itself. */
async function* puts(watcher: Watcher): AsyncGenerator<IKeyValue> {
  for await (const [kv] of on(watcher, "put")) {
    yield kv;
  }
}

/** Repeats a call that may run twice without harm. */
async function untilAnswered<T>(call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof Error && isRecoverableError(error))) throw error;
      await sleep(TRY_AGAIN_MS);
    }
  }
}

async function failover(kv: Namespace) {
  const lease = kv.lease(LEASE_TTL_SECONDS);
  const lost = once(lease, "lost").then(([error]) => {
    throw error;
  });
  await lease.put("instances/a").value("10.0.0.1");
  const watcher = await kv.watch().prefix("log/").create();
  const events = puts(watcher);
  const next = async () => (await events.next()).value?.value.toString();

  const first = next();
  await kv.put("log/1").value("before");
  assert.equal(await first, "before");

  console.log("ready: kill the leader, then press Enter");
  await once(process.stdin, "data");
  const killedAt = Date.now();

  await untilAnswered(async () => kv.put("log/2").value("after"));
  assert.equal(await next(), "after");

  // The lease must live longer than it would have without renewals.
  while (Date.now() - killedAt <= LEASE_TTL_SECONDS * 1000) {
    await Promise.race([once(lease, "keepaliveSucceeded"), lost]);
  }
  assert.equal(await kv.get("instances/a").string(), "10.0.0.1");
  await lease.revoke();
  await watcher.cancel();
}

const client = connect();
const kv = client.namespace(`examples/${randomUUID()}/`);
if (process.argv.includes("--failover")) {
  await failover(kv);
} else {
  for (const example of [putAndGet, compareAndSwap, watch, lease, lock]) {
    await example(kv);
    console.log(`${example.name}: ok`);
  }
}
await kv.delete().all();
client.close();
process.stdin.destroy();
