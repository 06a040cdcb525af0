/**
 * What stands in a hub's feed, through HTTP and compression into a committed school file, against plain `json_each` upserts
 * of the same rows into a file of the same shape, written by the same kind of connection in transactions of the same size.
 */
import { mkdtempSync } from "node:fs"
import { join } from "node:path"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { Deliver } from "../../src/down/deliver.ts"
import { follow, type Pulled, pullOnce, refreshManifest } from "../../src/down/pull.ts"
import { Libsql, openFile } from "../../src/libsql/client.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"
import { makeLink } from "../../src/link/client.ts"
import { PROTOCOL } from "../../src/link/protocol.ts"
import { VERSION } from "../../src/version.ts"
import { atLeast, bench } from "./frame.ts"
import { type Ground, insertRows, openGround, SCHOOL } from "./ground.ts"
import { openNodes, reader, until } from "./nodes.ts"

/** Rows of a cut that is one page; a page takes a little more of such rows than `whole`. */
const ROWS = { half: 4_000, whole: 8_000 }
/** Cuts that nobody measures: what has just started is compiled while it runs, and a hub and a school run for months. */
const WARM_UP = 80
const COLUMNS = ["id", "school_id", "student_id", "class_id", "day", "status", "marked_by", "note", "updated_at"]
const INSTALL = { streams: [], adopt: false, alsoInstall: () => Effect.void }

/** A school's end of the link in this process: pulls when it is told to. */
const openPuller = async (ground: Ground, hubUrl: string) => {
  const scope = Scope.makeUnsafe()
  const file = await Effect.runPromise(Scope.provide(openFile(join(mkdtempSync(join(ground.dir, "school-")), "school.db")), scope))
  const incarnation = crypto.randomUUID()
  await Effect.runPromise(migrateFile(file, "school"))
  await Effect.runPromise(file.write((tx) => tx.run("INSERT INTO schoolbus_state (id, incarnation, school) VALUES (1, ?, ?)", [incarnation, SCHOOL])))
  const libsql = Layer.succeed(Libsql, file)
  const services = await Effect.runPromise(Scope.provide(Layer.build(Deliver.layer.pipe(Layer.provideMerge(libsql))), scope))
  const link = makeLink({ hub: hubUrl, key: ground.key })
  const { token } = await Effect.runPromise(
    link.hello({
      ...{ protocol: PROTOCOL, incarnation, token: "", epoch: "", seq: 0, cut: "0", lastBatch: 0, manifest: 0 },
      ...{ clock: Date.now(), version: VERSION },
    }),
  )
  const identity = { incarnation, token }
  await Effect.runPromise(Effect.provide(refreshManifest(link, identity, INSTALL), services))
  let last: Pulled | undefined
  return {
    file: Context.get(services, Libsql),
    /** One page of a cut, or whatever there is. */
    pull: async (): Promise<void> => {
      const pulled = await Effect.runPromise(Effect.provide(pullOnce(link, identity, INSTALL, 20, last), services))
      last = pulled
      if (pulled.kind !== "nothing" && !pulled.delivered.applied) throw new Error("the cut is longer than one page")
    },
    /** As a school's session does it, until a cut is applied. */
    follow: async (): Promise<void> => {
      const applied = Deferred.makeUnsafe<void>()
      const following = follow(link, identity, INSTALL, { noStreamUntil: 0 }, (pulled) =>
        pulled.kind !== "nothing" && pulled.delivered.applied ? Effect.asVoid(Deferred.succeed(applied, undefined)) : Effect.void,
      )
      await Effect.runPromise(Effect.provide(Effect.raceFirst(following, Deferred.await(applied)), services))
    },
    close: () => Effect.runPromise(Scope.close(scope, Exit.void)),
  }
}

/** A file of its own that takes rows by plain upserts. */
const openPlain = async (ground: Ground) => {
  const scope = Scope.makeUnsafe()
  const file = await Effect.runPromise(Scope.provide(openFile(join(mkdtempSync(join(ground.dir, "plain-")), "plain.db")), scope))
  await Effect.runPromise(
    file.write((tx) =>
      tx.exec(`CREATE TABLE attendance (id BIGINT PRIMARY KEY, school_id TEXT NOT NULL, student_id INTEGER NOT NULL, class_id INTEGER, day TEXT, status TEXT,
        marked_by TEXT, note TEXT, updated_at TEXT)`),
    ),
  )
  const upsert = `INSERT INTO attendance (${COLUMNS}) SELECT ${COLUMNS.map((_, i) => `value->>${i}`)} FROM json_each(?) WHERE true
    ON CONFLICT (id) DO UPDATE SET ${COLUMNS.slice(1).map((name) => `${name} = excluded.${name}`)}`
  return {
    upsert: (rows: ReadonlyArray<ReadonlyArray<unknown>>): Promise<void> =>
      Effect.runPromise(
        file.write((tx) =>
          Effect.gen(function* () {
            for (let i = 0; i < rows.length; i += 1000) yield* tx.run(upsert, [JSON.stringify(rows.slice(i, i + 1000))])
          }),
        ),
      ),
    close: () => Effect.runPromise(Scope.close(scope, Exit.void)),
  }
}

/** Seconds. */
const timed = async (work: () => Promise<unknown>): Promise<number> => {
  const began = performance.now()
  await work()
  return (performance.now() - began) / 1000
}

export default bench({
  name: "feed-to-school",
  about: "from the feed to the committed school file over HTTP, against plain json_each upserts of the same rows",
  bars: {
    half: { what: "cuts of half a page (4,000 rows)", unit: "rows/s", want: atLeast(0.6) },
    whole: { what: "cuts of a page (8,000 rows)", unit: "rows/s", want: atLeast(0.6) },
    staged: { what: "one cut of 500,000 rows, staged", unit: "rows/s", want: atLeast(0.45) },
  },
  run: async function* ({ rounds, size, say }) {
    const ground = await openGround()
    const nodes = openNodes(ground)
    try {
      await ground.backlog((sql) => sql`SELECT 1`)
      const hub = await nodes.hub()
      const feed = reader(hub.dir, "feed.db")
      const rowsOf = async (from: number, to: number) =>
        (await ground.sql`SELECT id::text, school_id, student_id::text, class_id, day::text, status, marked_by, note, updated_at::text
            FROM attendance WHERE id BETWEEN ${from} AND ${to} ORDER BY id`.values()) as ReadonlyArray<ReadonlyArray<unknown>>
      const attendance = "tbl = (SELECT id FROM tables WHERE name = 'public.attendance') AND class > 0 AND body IS NOT NULL"
      const emptied = () => until("an empty feed", () => feed.one(`SELECT EXISTS (SELECT 1 FROM entry WHERE ${attendance})`) === 0)
      /** The last row that was written is there, so all are. */
      const arrived = (last: number) =>
        until("the feed", () => feed.one(`SELECT count(*) FROM entry WHERE key IN ('[${last}]', '["${last}"]') AND ${attendance}`) === 1)
      const total = size(500_000, 40_000)
      /** Rows per second of cuts of so many rows, from one id on, and of plain upserts of the same, one after the other in turn. */
      const straight = async (puller: Awaited<ReturnType<typeof openPuller>>, rows: number, first: number, cuts: number) => {
        const plain = await openPlain(ground)
        let [own, peer] = [0, 0]
        for (let from = first; from < first + rows * cuts; from += rows) {
          await insertRows(ground.sql, rows, rows, from)
          await arrived(from + rows - 1)
          own += await timed(puller.pull)
          const list = await rowsOf(from, from + rows - 1)
          peer += await timed(() => plain.upsert(list))
        }
        await plain.close()
        return { figure: (rows * cuts) / own, peer: (rows * cuts) / peer }
      }
      for (let round = 0; round < rounds; round++) {
        const puller = await openPuller(ground, hub.url)
        await ground.sql`DELETE FROM attendance`
        await emptied()
        await puller.follow()
        let first = 1
        for (const [bar, rows, cuts] of [
          [null, ROWS.half, round === 0 ? size(WARM_UP, 0) : 0],
          ["half", ROWS.half, size(20, 4)],
          ["whole", ROWS.whole, size(10, 2)],
        ] as const) {
          const measured = await straight(puller, rows, first, cuts)
          first += rows * cuts
          if (bar === null) continue
          say(`${rows} rows at once: ${Math.round(measured.figure)} rows/s, plain ${Math.round(measured.peer)}`)
          yield { bar, ...measured }
        }
        await puller.close()

        await insertRows(ground.sql, total - first + 1, 5_000, first)
        await arrived(total)
        const fresh = await openPuller(ground, hub.url)
        const staged = total / (await timed(fresh.follow))
        const [row] = await Effect.runPromise(fresh.file.read((tx) => tx.all<{ n: number }>("SELECT count(*) AS n FROM attendance")))
        if (row?.n !== total) throw new Error(`${row?.n} rows of ${total} arrived`)
        const plain = await openPlain(ground)
        let seconds = 0
        for (let from = 1; from <= total; from += ROWS.half) {
          const list = await rowsOf(from, Math.min(total, from + ROWS.half - 1))
          seconds += await timed(() => plain.upsert(list))
        }
        await plain.close()
        const peer = total / seconds
        say(`staged ${Math.round(staged)} rows/s, plain ${Math.round(peer)}`)
        yield { bar: "staged", figure: staged, peer }
        await fresh.close()
      }
      feed.close()
      await hub.stop()
    } finally {
      nodes.close()
      await ground.close()
    }
  },
})
