/** Schools that fetch their rows from a real hub over lines of every kind. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { afterAll, afterEach, beforeAll, expect, it } from "vitest"
import { keyedRows, readRows } from "../../src/link/frame.ts"
import { Deliver } from "../../src/down/deliver.ts"
import { follow, type Pulled, pullOnce, type PullOptions, refreshManifest } from "../../src/down/pull.ts"
import { Libsql, type LibsqlFile, openFile } from "../../src/libsql/client.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"
import { LinkDown } from "../../src/link/answer.ts"
import { type Identity, type Link, makeLink } from "../../src/link/client.ts"
import { newKey } from "../../src/link/keys.ts"
import { type BadLine, openBadLine } from "../support/bad-line.ts"
import { type HubLink, openHubLink } from "../support/hub-link.ts"
import { until } from "../support/until.ts"
import { makeWorld, type World } from "../support/world.ts"

const ROWS = 50_000
/** What 256 kbit/s carry in 10 s. */
const CUT_BYTES = 320_000
const folder = mkdtempSync(join(tmpdir(), "schoolbus-pull-"))
const PATIENCE = { idle: 10_000, poll: 10_000, firstByte: 10_000 }

let world: World
let hub: HubLink
beforeAll(async () => {
  world = await makeWorld(
    `CREATE TABLE alarms (id int PRIMARY KEY, school_id text, name text);
     CREATE TABLE marks (id int PRIMARY KEY, school_id text, pupil uuid, note text, at timestamptz);
     INSERT INTO alarms SELECT i, 'a', 'alarm ' || i FROM generate_series(1, 200) i;
     INSERT INTO marks SELECT i, 'a', gen_random_uuid(), 'mark ' || md5(i::text), now() FROM generate_series(1, ${ROWS}) i;
     INSERT INTO alarms SELECT 1000 + i, 's' || i, 'of school ' || i FROM generate_series(1, 200) i;`,
    {
      tables: {
        alarms: { audience: { column: "school_id" }, priority: "critical" },
        marks: { audience: { column: "school_id" }, priority: "low" },
      },
    },
    ["a", ...Array.from({ length: 200 }, (_, i) => `s${i + 1}`)],
  )
  hub = await openHubLink(world)
}, 60_000)
const ended: Array<() => void> = []
afterEach(() => {
  for (const end of ended.splice(0)) end()
})
afterAll(async () => {
  await hub?.stop()
  await world?.stop()
  rmSync(folder, { recursive: true, force: true })
})

const install: PullOptions = { streams: [], adopt: false, alsoInstall: () => Effect.void }

interface Node {
  readonly file: LibsqlFile
  readonly link: Link
  readonly run: <A, E>(effect: Effect.Effect<A, E, Libsql | Deliver>) => Promise<A>
  readonly greet: Effect.Effect<Identity, unknown>
  readonly count: (table: string) => Promise<number>
}
let made = 0
const openNode = async (url: string, key: string, school: string, patience = PATIENCE): Promise<Node> => {
  const scope = Scope.makeUnsafe()
  const file = await Effect.runPromise(Scope.provide(openFile(join(folder, `node${++made}.db`)), scope))
  ended.push(() => void Effect.runPromise(Scope.close(scope, Exit.void)))
  await Effect.runPromise(migrateFile(file, "school"))
  const incarnation = crypto.randomUUID()
  await Effect.runPromise(file.write((tx) => tx.run("INSERT INTO schoolbus_state (id, incarnation, school) VALUES (1, ?, ?)", [incarnation, school])))
  const layer = Deliver.layer.pipe(Layer.provideMerge(Layer.succeed(Libsql, file)))
  const context = await Effect.runPromise(Scope.provide(Layer.build(layer), scope))
  const link = makeLink({ hub: url, key, patience })
  const greet = Effect.gen(function* () {
    const [state] = yield* file.read((tx) =>
      tx.all<{ token: string; epoch: string; seq: number; cut: string }>("SELECT token, epoch, seq, cut FROM schoolbus_state"),
    )
    const said = { protocol: 1, incarnation, lastBatch: 0, manifest: 0, clock: 0, version: "test", token: "", epoch: "", seq: 0, cut: "0", ...state }
    const { token } = yield* link.hello(said)
    yield* file.write((tx) => tx.run("UPDATE schoolbus_state SET token = ?", [token]))
    return { incarnation, token }
  })
  return {
    file,
    link,
    greet,
    run: (effect) => Effect.runPromise(Effect.provide(effect, context)),
    count: (table) =>
      Effect.runPromise(file.read((tx) => Effect.map(tx.all<{ n: number }>(`SELECT count(*) AS n FROM ${table}`), ([row]) => row?.n ?? 0))),
  }
}

const isBroken = (pulled: Pulled) => pulled.kind === "part"

/** As a session does: greet, take what comes until the line breaks, and once more, until the cut is complete. */
const fetchAll = (node: Node, way: "stream" | "pull", onPulled: (pulled: Pulled) => Effect.Effect<void> = () => Effect.void) =>
  node.run(
    Effect.gen(function* () {
      let isDone = false
      const took = (pulled: Pulled) =>
        Effect.gen(function* () {
          yield* onPulled(pulled)
          isDone ||= pulled.kind !== "nothing" && pulled.delivered.applied
          if (isDone || isBroken(pulled)) return yield* new LinkDown({ message: "enough" })
        })
      for (let attempts = 0; !isDone && attempts < 200; attempts++) {
        yield* Effect.ignore(
          Effect.gen(function* () {
            const identity = yield* node.greet
            if ((yield* node.file.read((tx) => tx.all("SELECT 1 FROM schoolbus_state WHERE manifest IS NULL"))).length > 0)
              yield* refreshManifest(node.link, identity, install)
            if (way === "stream") return yield* follow(node.link, identity, install, { noStreamUntil: 0 }, took)
            for (;;) yield* took(yield* pullOnce(node.link, identity, install, 0))
          }),
        )
      }
      return isDone
    }),
  )

const lineTo = async (): Promise<BadLine> => {
  const line = await openBadLine(hub.url)
  ended.push(line.close)
  return line
}

/** An uncut run. */
let bytesOfAll = 0
it.each(["stream", "pull"] as const)(
  "a first copy over a line that breaks every 320 kB takes less than 1.2 times the bytes, and critical rows are there long before (%s)",
  async (way) => {
    const { text } = await hub.key("a")
    if (bytesOfAll === 0) {
      const whole = await lineTo()
      expect(await fetchAll(await openNode(whole.url, text, "a"), way)).toBe(true)
      bytesOfAll = whole.received()
    }
    const line = await lineTo()
    line.cutAfter = CUT_BYTES
    const node = await openNode(line.url, text, "a")
    const early: Array<number> = []
    const progress: Array<readonly [rows: number, left: number, bytes: number, leftBytes: number]> = []
    expect(
      await fetchAll(node, way, (pulled) =>
        Effect.promise(async () => {
          early.push(await node.count("alarms"))
          if (pulled.kind === "nothing" || pulled.delivered.applied) return
          const { received, rows } = pulled.delivered
          progress.push([received.rows, received.rows - rows + pulled.header.left, received.bytes, pulled.header.leftBytes ?? 0])
        }),
      ),
    ).toBe(true)
    expect([await node.count("alarms"), await node.count("marks")]).toEqual([200, ROWS])
    expect(line.connections()).toBeGreaterThan(5)
    expect(line.received() / bytesOfAll).toBeLessThan(1.2)
    expect(early.indexOf(200)).toBeLessThan(early.length / 3)
    // Rows come on with every page, and the whole is known from the first.
    for (const [i, [rows, total]] of progress.entries()) {
      expect(rows).toBeGreaterThan(progress[i - 1]?.[0] ?? 0)
      expect(total).toBeGreaterThanOrEqual(ROWS + 200)
      expect(total).toBeLessThan(ROWS + 1_000)
    }
    expect(progress[0]?.[3]).toBeGreaterThan(ROWS * 80)
  },
  60_000,
)

it("behind a proxy that collects bytes a school asks for pages one by one, and gets what comes", async () => {
  const { text } = await hub.key("s1")
  const line = await lineTo()
  line.holdBytes = 100_000
  const node = await openNode(line.url, text, "s1", { ...PATIENCE, firstByte: 300 })
  const way = { noStreamUntil: 0 }
  const identity = await node.run(Effect.tap(node.greet, (who) => refreshManifest(node.link, who, install)))
  let cuts = 0
  const following = node.run(
    Effect.forkDetach(
      follow(node.link, identity, install, way, (pulled) =>
        Effect.sync(() => {
          if (pulled.kind !== "nothing" && pulled.delivered.applied) cuts++
        }),
      ),
    ),
  )
  await until("the first cut", () => cuts > 0)
  expect(way.noStreamUntil).toBeGreaterThan(0)
  await world.sql`INSERT INTO alarms VALUES (5001, 's1', 'later')`
  await until("a new row", async () => (await node.count("alarms")) === 2)
  await Effect.runPromise(Fiber.interrupt(await following))
})

it.each([
  ["where the last page ended a cut", "SELECT 1"],
  ["where the school is, when it was put back meanwhile", "UPDATE schoolbus_state SET epoch = '', seq = 0, cut = '0'"],
])("a poll goes on %s", async (_, sql) => {
  const { text } = await hub.key("s2")
  const node = await openNode(hub.url, text, "s2")
  expect(await fetchAll(node, "pull")).toBe(true)
  await node.run(
    Effect.gen(function* () {
      const identity = yield* node.greet
      const alarm = (id: number) => Effect.promise(() => world.sql`INSERT INTO alarms (id, school_id) VALUES (${id}, 's2')`)
      const first = yield* pullOnce(node.link, identity, install, 0)
      yield* alarm(90_001)
      const second = yield* pullOnce(node.link, identity, install, 20, first)
      expect(second).toMatchObject({ kind: "page", delivered: { applied: true }, header: { full: false } })
      yield* node.file.write((tx) => tx.run(sql))
      yield* alarm(90_002)
      const third = yield* pullOnce(node.link, identity, install, 20, second)
      expect(third).toMatchObject({ kind: "page", delivered: { applied: true }, header: { full: sql !== "SELECT 1" } })
    }),
  )
  expect(await node.count("alarms WHERE id > 90000")).toBe(2)
  await world.sql`DELETE FROM alarms WHERE id > 90000`
})

it("a line that falls silent is noticed, in a stream and in a long poll", async () => {
  const { text } = await hub.key("s2")
  for (const mode of ["stream", "poll"] as const) {
    const line = await lineTo()
    const node = await openNode(line.url, text, "s2", { idle: 700, poll: 700, firstByte: 5_000 })
    const identity = await node.run(Effect.tap(node.greet, (who) => refreshManifest(node.link, who, install)))
    const failed = await node.run(
      Effect.flip(
        mode === "stream"
          ? follow(node.link, identity, install, { noStreamUntil: 0 }, () =>
              Effect.sync(() => {
                line.silent = true
              }),
            )
          : Effect.andThen(
              pullOnce(node.link, identity, install, 0),
              Effect.suspend(() => {
                line.silent = true
                return Effect.flatMap(pullOnce(node.link, identity, install, 0), () => Effect.die("an answer over a dead line"))
              }),
            ),
      ),
    )
    expect((failed as { _tag: string })._tag).toBe("LinkDown")
  }
})

it("a stream whose school died is ended, and one whose school says that it lives goes on", async () => {
  const idleMs = 1_500
  const quick = await openHubLink(world, { everyMs: 20, idleMs, beatMs: 100 })
  ended.push(() => void quick.stop())
  const { text } = await quick.key("s3")
  const open = async () => {
    const node = await openNode(quick.url, text, "s3")
    const { incarnation, token } = await node.run(node.greet)
    const response = await quick.call(text, `stream?incarnation=${incarnation}&token=${token}&epoch=&seq=0&cut=0`, {
      headers: { "accept-encoding": "identity" },
    })
    expect(response.status).toBe(200)
    return { incarnation, reader: (response.body as ReadableStream<Uint8Array>).getReader() }
  }
  const silent = await open()
  const startedAt = Date.now()
  // It takes every byte, and never says so: a line that swallows them looks the same from here.
  while (!(await silent.reader.read()).done);
  expect(Date.now() - startedAt).toBeGreaterThanOrEqual(idleMs - 100)

  const live = await open()
  let beats = 0
  for (const until = Date.now() + 2 * idleMs; Date.now() < until; ) {
    await world.run(world.feed.reader.seen(live.incarnation, {}))
    const { done, value } = await live.reader.read()
    expect(done).toBe(false)
    if (value?.length === 1) beats++
  }
  expect(beats).toBeGreaterThan(3)
  await live.reader.cancel()

  const { text: whole } = await quick.key("a")
  const node = await openNode(quick.url, whole, "a")
  const { incarnation, token } = await node.run(node.greet)
  const stuck = await quick.call(whole, `stream?incarnation=${incarnation}&token=${token}&epoch=&seq=0&cut=0`, {
    headers: { "accept-encoding": "identity" },
  })
  const reader = (stuck.body as ReadableStream<Uint8Array>).getReader()
  await reader.read()
  // Takes nothing for longer than the limit, in the middle of 50,000 rows.
  await new Promise((resolve) => setTimeout(resolve, 2 * idleMs))
  let bytes = 0
  for (let part = await reader.read(); !part.done; part = await reader.read()) bytes += part.value.length
  expect(bytes).toBeLessThan(ROWS * 50)
}, 30_000)

it("200 schools that come at once are all served", async () => {
  const keys = Array.from({ length: 200 }, () => newKey())
  for (const [i, { id, hash }] of keys.entries())
    await world.sql`INSERT INTO schoolbus.school_keys (id, school, hash) VALUES (${id}, ${`s${i + 1}`}, ${hash})`
  await world.settle()
  const schools = await Promise.all(
    keys.map(async ({ text }, i) => {
      const link = makeLink({ hub: hub.url, key: text, patience: { idle: 40_000, poll: 40_000, firstByte: 40_000 } })
      const incarnation = crypto.randomUUID()
      const hello = { protocol: 1, incarnation, token: "", epoch: "", seq: 0, cut: "0", lastBatch: 0, manifest: 0, clock: 0, version: "test" }
      const { token, school } = await Effect.runPromise(link.hello(hello))
      expect(school.id).toBe(`s${i + 1}`)
      const page = await Effect.runPromise(
        Effect.scoped(
          Effect.gen(function* () {
            const stream = yield* link.stream({ incarnation, token }, { epoch: "", seq: 0, cut: "0" }, null)
            return stream === "unsuited" ? stream : yield* stream.next
          }),
        ),
      )
      return typeof page === "string"
        ? page
        : page.lines.flatMap((line) => (line[3] === "public.alarms" ? keyedRows(readRows(line), ["id"]).map(([key]) => key[0]) : []))
    }),
  )
  for (const [i, ids] of schools.entries()) expect(ids).toContain(1001 + i)
  // None sees a row of another.
  expect(new Set(schools.flat()).size).toBe(schools.flat().length)
}, 60_000)
