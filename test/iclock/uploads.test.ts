import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import Database from "libsql"
import { afterEach, describe, expect, it } from "vitest"
import type { LibsqlFile } from "../../src/libsql/client.ts"
import { type Node, openNode, parseReply, rules, sendTo, serveFile, students } from "./node.ts"

let node: Node
const open = async (...args: Parameters<typeof openNode>) => {
  node = await openNode(...args)
  return node
}
afterEach(() => node.close())

const withoutAttendance = { tables: [students], devices: { people: rules.people } }
const line = (pin: number, second: number) => `${pin}\t2026-03-03 07:41:${String(second).padStart(2, "0")}\t0\t1\n`
const attlog = (serial: string, body: string) =>
  `POST /iclock/cdata?SN=${serial}&table=ATTLOG&Stamp=9999 HTTP/1.1\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`

describe.each([
  ["without attendance", withoutAttendance],
  ["with attendance", {}],
])("a program's trigger refuses a punch, %s", (_, options) => {
  it("it is kept as it came, with the reason; the others of its body are stored", async () => {
    await open(options)
    await node.approve("TSTA1")
    await node.program("CREATE TRIGGER no_teachers BEFORE INSERT ON punches WHEN NEW.pin = '9' BEGIN SELECT RAISE(ABORT, 'no teachers here'); END")
    const body = line(7, 1) + line(9, 2) + line(8, 3)
    for (let i = 0; i < 2; i++) expect(parseReply(await node.send(attlog("TSTA1", body))).body).toBe("OK: 3")
    expect(node.rows("SELECT pin FROM punches ORDER BY at")).toEqual([["7"], ["8"]])
    expect(node.rows('SELECT serial, "table", CAST(raw AS TEXT), reason FROM schoolbus_iclock_reject')).toEqual([
      ["TSTA1", "ATTLOG", "9\t2026-03-03 07:41:02\t0\t1", expect.stringContaining("not stored: no teachers here")],
    ])
  })
})

describe("uploads that arrive together", () => {
  const TERMINALS = 20
  const serial = (n: number) => `CROWD${n}`

  /** The terminals' services, their transactions counted and, from `shut` on, held up until `let`. */
  const serve = async (file: LibsqlFile) => {
    let transactions = 0
    let gate = Promise.resolve()
    let letThrough: () => void = () => undefined
    const counted = <A, E, R>(body: Effect.Effect<A, E, R>) =>
      Effect.suspend(() => {
        transactions++
        return Effect.andThen(
          Effect.promise(() => gate),
          body,
        )
      })
    const scope = Scope.makeUnsafe()
    const { port } = await serveFile(
      { ...file, write: (body) => counted(file.write(body)), alone: (sql, args) => counted(file.alone(sql, args)) },
      scope,
    )
    return {
      port,
      transactions: () => transactions,
      shut: () => {
        gate = new Promise((resolve) => (letThrough = resolve))
      },
      let: () => letThrough(),
      close: () => Effect.runPromise(Scope.close(scope, Exit.void)),
    }
  }

  const crowd = async (prepare: () => Promise<void> = () => Promise.resolve()) => {
    await open(withoutAttendance)
    for (let n = 0; n < TERMINALS; n++) await node.approve(serial(n), "UTC")
    await prepare()
    const served = await serve(node.school.file)
    // They are known, so that what is counted is their uploads.
    for (let n = 0; n < TERMINALS; n++) await sendTo(served.port, `GET /iclock/ping?SN=${serial(n)} HTTP/1.0\r\n\r\n`)
    const before = served.transactions()
    served.shut()
    let answered = 0
    const replies = Array.from({ length: TERMINALS }, async (_, n) => {
      const reply = parseReply(await sendTo(served.port, attlog(serial(n), line(n, 1) + line(n, 2))))
      answered++
      return reply
    })
    return { served, transactions: () => served.transactions() - before, answered: () => answered, replies: () => Promise.all(replies) }
  }

  it("share a transaction, and each is answered after it", async () => {
    const { served, transactions, answered, replies } = await crowd()
    try {
      await expect.poll(transactions).toBe(1)
      expect(answered()).toBe(0)
      served.let()
      for (const reply of await replies()) expect(reply.body).toBe("OK: 2")
      expect(transactions()).toBeLessThan(TERMINALS / 2)
      expect(node.rows("SELECT count(*), count(DISTINCT device_serial) FROM punches")).toEqual([[2n * BigInt(TERMINALS), BigInt(TERMINALS)]])
      expect(node.rows("SELECT count(*) FROM devices WHERE att_stamp = '9999'")).toEqual([[BigInt(TERMINALS)]])
    } finally {
      await served.close()
    }
  })

  it("one that cannot be stored is told so alone; the others are stored", async () => {
    const { served, replies } = await crowd(() =>
      node.program("CREATE TRIGGER broken BEFORE INSERT ON punches WHEN NEW.pin = '5' BEGIN SELECT RAISE(ROLLBACK, 'disk on fire'); END"),
    )
    try {
      served.let()
      const statuses = (await replies()).map(({ status }) => status)
      expect(statuses).toEqual(statuses.map((_, n) => (n === 5 ? 503 : 200)))
      expect(node.rows("SELECT count(*) FROM punches")).toEqual([[2n * BigInt(TERMINALS - 1)]])
    } finally {
      await served.close()
    }
  })
})

describe("the id of a punch", () => {
  it("stands in the order of the punches, so that a body touches one place of the file", async () => {
    await open(withoutAttendance)
    await node.approve("TSTA1")
    await node.send(attlog("TSTA1", line(9, 3) + line(7, 1) + line(8, 2)))
    expect(node.rows("SELECT at FROM punches ORDER BY id")).toEqual([["2026-03-03 07:41:01"], ["2026-03-03 07:41:02"], ["2026-03-03 07:41:03"]])
  })

  it("does not depend on the zone, also where the terminal names the moment: after a correction nothing is doubled", async () => {
    await open(withoutAttendance)
    await node.approve("TSTA1", "UTC")
    const body = `7\t1740976875\t0\t1\n${line(8, 1)}`
    await node.send(attlog("TSTA1", body))
    await node.approve("TSTA1", "Africa/Nairobi")
    await node.send(attlog("TSTA1", body))
    expect(node.rows("SELECT pin, at, at_utc FROM punches ORDER BY pin")).toEqual([
      ["7", "2025-03-03 04:41:15", "2025-03-03 04:41:15+00"],
      ["8", "2026-03-03 07:41:01", "2026-03-03 07:41:01+00"],
    ])
  })

  it("is another one for another moment, pin, status, way and terminal", async () => {
    await open(withoutAttendance)
    await node.approve("TSTA1")
    await node.approve("TSTA2")
    const lines = [
      "7\t2026-03-03 07:41:15\t0\t1",
      "7\t2026-03-03 07:41:16\t0\t1",
      "8\t2026-03-03 07:41:15\t0\t1",
      "7\t2026-03-03 07:41:15\t1\t1",
      "7\t2026-03-03 07:41:15\t0\t4",
    ]
    for (const serial of ["TSTA1", "TSTA2"]) for (const body of lines) await node.send(attlog(serial, `${body}\n${body}\n`))
    expect(node.rows("SELECT count(*), count(DISTINCT id) FROM punches")).toEqual([[10n, 10n]])
    const db = new Database(node.school.path)
    expect(db.prepare("SELECT count(*) FROM changes c JOIN schoolbus_tables t ON t.id = c.tbl WHERE t.local = 'punches'").raw(true).get()).toEqual([
      10,
    ])
    db.close()
  })
})
