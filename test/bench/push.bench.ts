/**
 * What a school's programs write -> captured, frozen, over HTTP, committed in head office's Postgres; beside it the same
 * rows written there in bulk, 1,000 a transaction. And 50 schools that push at once, beside one school with as many rows.
 */
import { createHash } from "node:crypto"
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import Database from "libsql"
import type postgres from "postgres"
import { type Identity, type Link, makeLink } from "../../src/link/client.ts"
import { newKey } from "../../src/link/keys.ts"
import { PROTOCOL } from "../../src/link/protocol.ts"
import { encodeBatch, encodeChange } from "../../src/model/batch.ts"
import { keyRangeOf } from "../../src/model/key-range.ts"
import { VERSION } from "../../src/version.ts"
import { atLeast, bench, under } from "./frame.ts"
import { type Ground, openGround, SCHEMA, SCHOOL } from "./ground.ts"
import { type Node, openNodes, reader, until } from "./nodes.ts"

const TOGETHER = 1_000
const SCHOOLS = 50
const CLOCK_TICKS = 100
const COLUMNS = ["id", "school_id", "student_id", "class_id", "day", "status", "marked_by", "note", "updated_at"]
const TYPES = "id bigint, school_id text, student_id bigint, class_id int, day date, status text, marked_by text, note text, updated_at timestamptz"

const rowOf = (school: string, id: bigint) => {
  const n = Number(id % 1_000_000n)
  return {
    ...{ id: String(id), school_id: school, student_id: String(n % 1000), class_id: n % 30, day: `2026-01-${10 + (n % 20)}`, status: "present" },
    ...{ marked_by: `teacher ${n % 40}`, note: "a note of usual length", updated_at: "2026-01-01 08:00:00+00" },
  }
}

const firstKey = async (sql: postgres.Sql, school: string): Promise<bigint> => {
  const [row] = await sql`SELECT number FROM schoolbus.schools WHERE id = ${school}`
  return BigInt(keyRangeOf(Number(row?.["number"]))?.from ?? "0")
}

/** Rows/s of plain bulk writes from this process: inserts, then updates after a look at the rows under their lock. */
const writePlainly = async (ground: Ground, rows: number) => {
  await ground.sql.unsafe(SCHEMA.replace("attendance", "plain"))
  const lists = listsOf(1n, rows)
  const put = (sql: postgres.Sql, list: ReadonlyArray<object>, end: string) =>
    sql.unsafe(`INSERT INTO plain SELECT * FROM json_to_recordset($1::text::json) AS r (${TYPES}) ${end}`, [JSON.stringify(list)])
  const timed = async (write: (list: ReadonlyArray<ReturnType<typeof rowOf>>) => Promise<unknown>) => {
    const began = performance.now()
    for (const list of lists) await write(list)
    return rows / ((performance.now() - began) / 1000)
  }
  const inserts = await timed((list) => put(ground.sql, list, ""))
  const sets = COLUMNS.slice(1).map((name) => `${name} = excluded.${name}`)
  const updates = await timed((list) =>
    ground.sql.begin(async (tx) => {
      await tx.unsafe("SELECT * FROM plain WHERE id = ANY ($1::text[]::bigint[]) ORDER BY id FOR UPDATE", [list.map(({ id }) => id)])
      await put(
        tx as unknown as postgres.Sql,
        list.map((row) => ({ ...row, status: "late" })),
        `ON CONFLICT (id) DO UPDATE SET ${sets}`,
      )
    }),
  )
  await ground.sql`DROP TABLE plain`
  return { inserts, updates }
}

/** Rows of the school, so many in a list. */
const listsOf = (first: bigint, rows: number): ReadonlyArray<ReadonlyArray<ReturnType<typeof rowOf>>> =>
  Array.from({ length: rows / TOGETHER }, (_, b) => Array.from({ length: TOGETHER }, (_, i) => rowOf(SCHOOL, first + BigInt(b * TOGETHER + i))))

/** A program of the school that inserts rows, and one that updates all. */
const insertHere = (dir: string, lists: ReadonlyArray<ReadonlyArray<object>>): void => {
  const db = new Database(join(dir, "school.db"), { timeout: 5000 })
  const insert = db.prepare(`INSERT INTO attendance (${COLUMNS}) SELECT ${COLUMNS.map((_, i) => `value->>${i}`)} FROM json_each(?)`)
  for (const list of lists) insert.run([JSON.stringify(list.map((row) => Object.values(row)))])
  db.close()
}
const updateHere = (dir: string): void => {
  const db = new Database(join(dir, "school.db"), { timeout: 5000 })
  db.exec("UPDATE attendance SET status = 'late', updated_at = '2026-01-02 08:00:00+00'")
  db.close()
}

/** Processor time so far, s; 0 without /proc. */
const cpuOf = ({ pid }: Node): number => {
  if (!existsSync(`/proc/${pid}/stat`)) return 0
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? []
  return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS
}

/** How late a process answers what needs no work, asked every 20 ms: as late as its event loop. */
const askHealth = ({ url }: Node) => {
  const waits: Array<number> = []
  let isOver = false
  const asking = (async () => {
    while (!isOver) {
      const began = performance.now()
      await fetch(`${url}/health`).then((response) => response.arrayBuffer())
      waits.push(performance.now() - began)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  })()
  return async () => {
    isOver = true
    await asking
    waits.sort((a, b) => a - b)
    return { most: waits.at(-1) ?? 0, p999: waits[Math.floor(waits.length * 0.999)] ?? 0 }
  }
}

interface Pusher {
  readonly link: Link
  readonly identity: Identity
  readonly batches: ReadonlyArray<{ readonly number: number; readonly hash: string; readonly bytes: Uint8Array }>
}

/** Schools without a file: their batches are made beforehand, `rows` in all. */
const openPushers = async (ground: Ground, hub: string, name: string, count: number, rows: number): Promise<ReadonlyArray<Pusher>> => {
  const keys = Array.from({ length: count }, () => newKey())
  const ids = keys.map((_, i) => `${name}-${i}`)
  await ground.sql`INSERT INTO schoolbus.schools ${ground.sql(ids.map((id) => ({ id, name: id })))}`
  await ground.sql`INSERT INTO schoolbus.school_keys ${ground.sql(keys.map(({ id, hash }, i) => ({ id, school: ids[i] ?? "", hash })))}`
  const pushers: Array<Pusher> = []
  for (const [i, key] of keys.entries()) {
    const school = ids[i] ?? ""
    const link = makeLink({ hub, key: key.text })
    const incarnation = crypto.randomUUID()
    const hello = {
      protocol: PROTOCOL,
      incarnation,
      token: "",
      epoch: "",
      seq: 0,
      cut: "0",
      lastBatch: 0,
      manifest: 0,
      clock: Date.now(),
      version: VERSION,
    }
    let token = ""
    // A key is known once the hub has read it from the stream.
    await until("the hub to know a key", () =>
      Effect.runPromise(link.hello(hello)).then(
        (welcome) => {
          token = welcome.token
          return true
        },
        () => false,
      ),
    )
    const first = await firstKey(ground.sql, school)
    const identity = { incarnation, token }
    const { version } = await Effect.runPromise(link.manifest(identity))
    const own = rows / count
    const batches = Array.from({ length: Math.ceil(own / TOGETHER) }, (_, b) => {
      const changes = Math.min(TOGETHER, own - b * TOGETHER)
      const lines = Array.from({ length: changes }, (_, n) => {
        const id = first + BigInt(b * TOGETHER + n)
        const mine = rowOf(school, id)
        return encodeChange({ id: b * TOGETHER + n + 1, table: "public.attendance", op: "insert", key: [String(id)], at: Date.now(), base: {}, mine })
      })
      const bytes = new TextEncoder().encode(encodeBatch({ incarnation, number: b + 1, manifest: version, contacts: [], changes }, lines))
      return { number: b + 1, hash: createHash("sha256").update(bytes).digest("hex"), bytes }
    })
    pushers.push({ link, identity, batches })
  }
  return pushers
}

/** Rows/s of all together, each school's batches one after the other. */
const pushAtOnce = async (pushers: ReadonlyArray<Pusher>, rows: number): Promise<number> => {
  const began = performance.now()
  await Promise.all(
    pushers.map(async ({ link, identity, batches }) => {
      for (const batch of batches) {
        const { exceptions } = await Effect.runPromise(
          Effect.retry(link.push(identity, batch), { while: (error) => error._tag === "LinkDown", schedule: Schedule.spaced("20 millis") }),
        )
        if (exceptions.length > 0) throw new Error(`not plainly applied: ${JSON.stringify(exceptions[0])}`)
      }
    }),
  )
  return rows / ((performance.now() - began) / 1000)
}

export default bench({
  name: "push",
  about: "from a program's write in the school to the commit in Postgres, against bulk writes of the same rows from this process",
  bars: {
    inserts: { what: "100,000 inserts of one school, against json_to_recordset", unit: "rows/s", want: atLeast(0.2) },
    updates: { what: "100,000 updates, against SELECT FOR UPDATE and bulk upsert", unit: "rows/s", want: atLeast(0.25) },
    hubLate: { what: "longest wait for the hub's /health meanwhile", unit: "ms", want: under(250) },
    hubLateMostly: { what: "the same, 99.9 %", unit: "ms", want: under(50) },
    schoolLate: { what: "longest wait for the school's /health meanwhile", unit: "ms", want: under(250) },
    schoolLateMostly: { what: "the same, 99.9 %", unit: "ms", want: under(50) },
    schools: { what: "50 schools pushing at once, against one", unit: "rows/s", want: atLeast(0.9) },
  },
  run: async function* ({ rounds, size, say }) {
    const ground = await openGround()
    const nodes = openNodes(ground, { isWatched: false })
    try {
      const rows = size(100_000, 20_000)
      for (let round = 0; round < rounds; round++) {
        await ground.backlog((sql) => sql`SELECT 1`)
        const hub = await nodes.hub()
        const school = await nodes.school(hub)
        const file = reader(school.dir)
        await until("the school's table", () => file.one("SELECT count(*) FROM attendance") === 0)
        const plain = await writePlainly(ground, rows)
        const first = await firstKey(ground.sql, SCHOOL)
        /** Looked for by the last row, as batches go in order: to count them all each time would be work of its own. */
        const arrived = async (condition: string) => {
          const last = `SELECT 1 FROM attendance WHERE id = ${first + BigInt(rows - 1)} AND ${condition}`
          await until("the rows in Postgres", async () => (await ground.sql.unsafe(last)).length === 1)
          const [row] = await ground.sql.unsafe(`SELECT count(*)::int AS n FROM attendance WHERE ${condition}`)
          if (row?.["n"] !== rows) throw new Error(`${row?.["n"]} rows of ${rows} arrived before the last one`)
        }
        let cpu = { hub: cpuOf(hub), school: cpuOf(school) }
        /** Until the verdicts are down: of the hub and of the school, per row. */
        const settled = async () => {
          const left = "SELECT (SELECT count(*) FROM changes) + (SELECT count(*) FROM schoolbus_state WHERE applying IS NOT NULL)"
          await until("all verdicts in the school", () => file.one(left) === 0)
          const now = { hub: cpuOf(hub), school: cpuOf(school) }
          const each = (side: keyof typeof now) => Math.round(((now[side] - cpu[side]) * 1e6) / rows)
          say(`processor time a row, its way back down included: hub ${each("hub")} us, school ${each("school")} us`)
          cpu = now
        }
        const lists = listsOf(first, rows)
        let began = performance.now()
        insertHere(school.dir, lists)
        const health = { hub: askHealth(hub), school: askHealth(school) }
        await arrived("true")
        const inserts = rows / ((performance.now() - began) / 1000)
        say(`inserts ${Math.round(inserts)} rows/s, plain ${Math.round(plain.inserts)}`)
        yield { bar: "inserts", figure: inserts, peer: plain.inserts }
        await settled()
        began = performance.now()
        updateHere(school.dir)
        await arrived("status = 'late'")
        const updates = rows / ((performance.now() - began) / 1000)
        say(`updates ${Math.round(updates)} rows/s, plain ${Math.round(plain.updates)}`)
        yield { bar: "updates", figure: updates, peer: plain.updates }
        await settled()
        const late = { hub: await health.hub(), school: await health.school() }
        yield { bar: "hubLate", figure: late.hub.most }
        yield { bar: "hubLateMostly", figure: late.hub.p999 }
        yield { bar: "schoolLate", figure: late.school.most }
        yield { bar: "schoolLateMostly", figure: late.school.p999 }
        file.close()
        await school.stop()

        const many = await openPushers(ground, hub.url, `many${round}`, SCHOOLS, rows)
        const single = await openPushers(ground, hub.url, `single${round}`, 1, rows)
        const peer = await pushAtOnce(single, rows)
        const figure = await pushAtOnce(many, rows)
        say(`${SCHOOLS} schools ${Math.round(figure)} rows/s, one ${Math.round(peer)}`)
        yield { bar: "schools", figure, peer }
        await hub.stop()
      }
    } finally {
      nodes.close()
      await ground.close()
    }
  },
})
